#!/usr/bin/env bash
# Runs every GPU test and benchmark and keeps what they say. Without a GPU it says so and ends well.
#
#   tools/gpu_check.sh OUTDIR [BINDIR]     BINDIR: where the programs are (default build/cuda/bin; built there if there are none)
#
# OUTDIR gets <test>.xml, <test>.log, <gpu>/attend_vs_bf16.json and summary.txt. KVRAZOR_GPU_BENCH passes arguments to
# bench/attend_vs_bf16.py; "none" leaves it out. KVRAZOR_GPU_SANITIZE=1 runs small tests under compute-sanitizer's memcheck, and
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
if [[ ! -x $bin/cuda_attend_test ]]; then
  cmake --preset cuda -DKVRAZOR_CUDA=ON -DKVRAZOR_LLAMA=OFF -B build/cuda
  cmake --build build/cuda --target cuda_page_convert_test cuda_attend_test kvrazor_cuda_c
fi

failed=0
summary() { printf '%s\n' "$*" | tee -a "$out/summary.txt"; }
: >"$out/summary.txt"
summary "$(nvidia-smi --query-gpu=name,driver_version --format=csv,noheader)"

for test in cuda_page_convert_test cuda_attend_test; do
  if "$bin/$test" --gtest_output="xml:$out/$test.xml" >"$out/$test.log" 2>&1; then
    summary "$test: passed, $(grep -c '       OK ' "$out/$test.log") tests"
  else
    failed=1
    summary "$test: FAILED"
    grep -E 'FAILED|Failure|Actual|Expected|differs|head ' "$out/$test.log" | head -40 | tee -a "$out/summary.txt"
  fi
done

sanitize() {  # tool, program
  if compute-sanitizer --tool "$1" --error-exitcode 9 "$2" --gtest_filter='*LengthsAroundEveryEdge*2_128:*LengthsAroundEveryEdge*oscar_128' \
    >"$out/$1.log" 2>&1; then
    summary "compute-sanitizer $1: clean"
  else
    failed=1
    summary "compute-sanitizer $1: FAILED, see $1.log"
    grep -E '^=========.*(Error|SUMMARY)' "$out/$1.log" | sort | uniq -c | sort -rn | head -8 | tee -a "$out/summary.txt"
  fi
}
if [[ ${KVRAZOR_GPU_SANITIZE:-0} == 1 ]]; then sanitize memcheck "$bin/cuda_attend_test"; fi
if [[ -n ${KVRAZOR_GPU_RACECHECK:-} ]]; then sanitize racecheck "$KVRAZOR_GPU_RACECHECK/cuda_attend_test"; fi

if [[ ${KVRAZOR_GPU_BENCH:-} != none ]]; then
  # shellcheck disable=SC2086  # several arguments on purpose
  if python3 bench/attend_vs_bf16.py --library "$bin/libkvrazor_cuda_c.so" --out "$out" ${KVRAZOR_GPU_BENCH:-} 2>&1 | tee "$out/attend_vs_bf16.txt"; then
    cat "$out/attend_vs_bf16.txt" >>"$out/summary.txt"
  else
    failed=1
    summary "bench/attend_vs_bf16.py: FAILED"
  fi
fi
exit "$failed"
