#!/usr/bin/env bash
# Runs every GPU test and benchmark and keeps what they say. Without a GPU it says so and ends well.
#
#   tools/gpu_check.sh OUTDIR [BINDIR]     BINDIR: where the programs are (default build/cuda/bin; built there if there are none)
#
# OUTDIR gets <test>.xml, <test>.log, <gpu>/attend_vs_bf16.json, <gpu>/prefill_vs_bf16.json, store_bench.json and summary.txt.
# KVRAZOR_GPU_BENCH passes arguments to bench/attend_vs_bf16.py; "none" leaves all benchmarks out. KVRAZOR_GPU_SANITIZE=1 runs small tests under compute-sanitizer's memcheck, and
# KVRAZOR_GPU_RACECHECK=DIR those in DIR, built with -DKVRAZOR_CUDA_RACECHECK=ON, under its racecheck.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ $# -lt 1 ]]; then
  sed -n '2,10s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
readonly out=$1 bin=${2:-build/cuda/bin}
mkdir -p "$out"

if ! command -v nvidia-smi >/dev/null || ! nvidia-smi -L 2>/dev/null | grep -q GPU; then
  echo "gpu_check: no GPU on this machine, nothing was run" | tee "$out/summary.txt"
  exit 0
fi
if [[ ! -x $bin/cuda_attend_test || ! -x $bin/cuda_prefill_test || ! -x $bin/cuda_store_test ]]; then
  cmake --preset cuda -DKVRAZOR_CUDA=ON -DKVRAZOR_LLAMA=OFF -B build/cuda
  cmake --build build/cuda --target cuda_page_convert_test cuda_attend_test cuda_prefill_test cuda_store_test kvrazor_cuda_c kvrazor_cuda_store_c cuda_store_bench
fi

failed=0
summary() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }
: >"$out/summary.txt"
summary "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)"

for test in cuda_page_convert_test cuda_attend_test cuda_prefill_test cuda_store_test; do
  if "$bin/$test" --gtest_output="xml:$out/$test.xml" >"$out/$test.log" 2>&1; then
    summary "$test: passed, $(grep -c '       OK ' "$out/$test.log") tests"
  else
    failed=1
    summary "$test: FAILED"
    grep -E 'FAILED|Failure|Actual|Expected|differs|head ' "$out/$test.log" | head -40 | tee -a "$out/summary.txt"
  fi
done

# What was compiled for compute capability 8.0 runs here through its PTX.
if CUDA_FORCE_PTX_JIT=1 "$bin/cuda_attend_test" --gtest_filter='PlainPages/*' >"$out/cuda_attend_ptx.log" 2>&1 &&
  CUDA_FORCE_PTX_JIT=1 "$bin/cuda_store_test" --gtest_filter='PlainPages/*' >"$out/cuda_store_ptx.log" 2>&1; then
  summary "plain pages through PTX: passed"
else
  failed=1
  summary "plain pages through PTX: FAILED, see $out/cuda_attend_ptx.log and $out/cuda_store_ptx.log"
fi

readonly attend_cases='*LengthsAroundEveryEdge*2_128:*LengthsAroundEveryEdge*oscar_128:*LengthsAroundEveryEdge*quarot_128:*LengthsAroundEveryEdge*razor_3v_256'
readonly store_cases='*ReferencesUpToTies/razor_2_1x128:*ReferencesUpToTies/oscar_3x64:*ReferencesUpToTies/kivi_2x128:*StoresRows*razor_2_2x64:*Moment*1x128*:*Factor*1x128*:*RowsAre*razor_2_1x128:*RowsAre*oscar_3x64:*ReferencesUpToTies/turboquant_2_2x64:*ReferencesUpToTies/kivi_2x256:*ReferencesUpToTies/razor_3v_1x256:*RowsAre*quarot_2x64:*RowsAre*turboquant_3_1x256:*2x256_gqa3_plain'
sanitize() {  # tool, program, cases
  local log
  log=$out/$1-$(basename "$2").log
  if compute-sanitizer --tool "$1" --error-exitcode 9 "$2" --gtest_filter="$3" >"$log" 2>&1; then
    summary "compute-sanitizer $1, $(basename "$2"): clean"
  else
    failed=1
    summary "compute-sanitizer $1, $(basename "$2"): FAILED, see $log"
    grep -E '^=========.*(Error|SUMMARY)' "$log" | sort | uniq -c | sort -rn | head -8 | tee -a "$out/summary.txt"
  fi
}
readonly prefill_cases='*LengthsAroundEveryEdge*razor_2_128:*LengthsAroundEveryEdge*sinks_16_64'
if [[ ${KVRAZOR_GPU_SANITIZE:-0} == 1 ]]; then
  sanitize memcheck "$bin/cuda_attend_test" "$attend_cases"
  sanitize memcheck "$bin/cuda_store_test" "$store_cases"
  sanitize racecheck "$bin/cuda_store_test" "$store_cases"
  sanitize memcheck "$bin/cuda_prefill_test" "$prefill_cases"
fi
if [[ -n ${KVRAZOR_GPU_RACECHECK:-} ]]; then sanitize racecheck "$KVRAZOR_GPU_RACECHECK/cuda_attend_test" "$attend_cases"; fi

benchmark() {  # name, command
  local name=$1
  shift
  if "$@" 2>&1 | tee "$out/$name.txt"; then
    cat "$out/$name.txt" >>"$out/summary.txt"
  else
    failed=1
    summary "$name: FAILED"
  fi
}
if [[ ${KVRAZOR_GPU_BENCH:-} != none ]]; then
  # shellcheck disable=SC2086  # several arguments on purpose
  benchmark attend_vs_bf16 python3 bench/attend_vs_bf16.py --library "$bin/libkvrazor_cuda_c.so" --out "$out" ${KVRAZOR_GPU_BENCH:-}
  benchmark store_bench "$bin/cuda_store_bench" "$out/store_bench.json"
  benchmark prefill_vs_bf16 python3 bench/prefill_vs_bf16.py --library "$bin/libkvrazor_cuda_store_c.so" --out "$out"
fi
exit "$failed"
