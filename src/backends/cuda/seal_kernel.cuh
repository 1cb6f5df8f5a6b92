// One launch of append and seal. Grid (kv heads, storing blocks + workers, 2 sides); a worker seals one head and side of pages y,
// y + workers, ..., or a CTA stores rows of new tokens. With token scales the heads of a page are one cluster.
#pragma once

#include <cuda_bf16.h>

#include "src/backends/cuda/seal_affine.cuh"
#include "src/backends/cuda/seal_razor_key.cuh"
#include "src/backends/cuda/seal_razor_value.cuh"

namespace kvrazor::cuda {

/// Eight bf16 values as f16, those out of range at its largest (NaN stays one).
__device__ __forceinline__ uint4 F16FromBf16(const uint4& v) {
  uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t w = words[i];
    const auto convert = [](uint32_t bits) -> uint32_t {
      const float x = __uint_as_float(bits);
      return x != x ? 0x7e00u : SaturatedF16(x);
    };
    words[i] = convert(w << 16) | convert(w & 0xffff0000u) << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// Rows of one head and side; D/8 threads a token, each 16 bytes.
template <int kDim>
__device__ __forceinline__ void Store(const StoreRows& store, int num_kv_heads, int head, int side, int block) {
  constexpr int kChunks = kDim / 8;
  const int tokens = blockDim.x / kChunks;
  const int token = block * tokens + static_cast<int>(threadIdx.x) / kChunks, chunk = threadIdx.x % kChunks;
  if (token >= store.num_tokens) return;
  const int slot = store.slots[token];
  if (slot < 0 || slot >= store.num_slots) return;
  uint4 v = *reinterpret_cast<const uint4*>((side == 0 ? store.k : store.v) + token * store.token_bytes + head * store.head_bytes + chunk * 16);
  if (store.is_bf16) v = F16FromBf16(v);
  const int64_t block_at = ((int64_t{slot / kTokens} * num_kv_heads + head) * 2 + side) * (kTokens * 2 * kDim);
  *reinterpret_cast<uint4*>(store.row_pages + block_at + RowByte<kDim>(slot % kTokens, 8 * chunk)) = v;
}

template <bool kRazor, int kDim>
struct SealKernel {
  using Affine = AffineSeal<kDim>;
  using Key = RazorKeySeal<kDim>;
  using Value = RazorValueSeal<kDim>;
  static constexpr int kThreads = kRazor ? Key::kThreads : Affine::kThreads;
  /// CTAs a multiprocessor: as many as shared memory holds with razor; with affine pages 3 for many pages (80 registers, 180 bytes spilled at
  /// D = 128), 2 for an append, where the time of one page counts.
  static constexpr int kMany = kRazor && kDim == 64 ? 4 : 3;
  static constexpr int kFew = kRazor ? kMany : 2;
  static constexpr int kSharedBytes =
      kRazor ? static_cast<int>(sizeof(typename Key::Shared) > sizeof(typename Value::Shared) ? sizeof(typename Key::Shared) : sizeof(typename Value::Shared))
             : static_cast<int>(sizeof(typename Affine::Shared));

  __device__ static void Run(const SealParams& p) {
    extern __shared__ uint4 shared[];
    const int head = blockIdx.x, side = blockIdx.z;
    const int block = static_cast<int>(blockIdx.y) - p.store.num_blocks;
    if (block < 0) return Store<kDim>(p.store, p.num_kv_heads, head, side, block + p.store.num_blocks);
    const int workers = static_cast<int>(gridDim.y) - p.store.num_blocks;
    // The same for all CTAs of a cluster.
    int index = NextJob(p.jobs, p.num_jobs, block, workers);
    for (; index < p.num_jobs; index = NextJob(p.jobs, p.num_jobs, index + workers, workers)) {
      const SealJob job = p.jobs[index];
      if constexpr (!kRazor) {
        Affine::Run(p, job, head, side, Out(p, job, head), *reinterpret_cast<typename Affine::Shared*>(shared));
      } else if (side == 0) {
        Key::Run(p, job, head, Out(p, job, head), *reinterpret_cast<typename Key::Shared*>(shared));
      } else {
        Value::Run(p, job, head, Out(p, job, head), *reinterpret_cast<typename Value::Shared*>(shared));
      }
      Finish(p, job, head, side);
      __syncthreads();
    }
  }

 private:
  __device__ static uint8_t* Out(const SealParams& p, const SealJob& job, int head) {
    return p.packed_pages + (int64_t{job.target} * p.num_kv_heads + head) * p.packed_head_bytes;
  }
  __device__ static void Finish(const SealParams& p, const SealJob& job, int head, int side) {
    if (job.sink >= 0 && p.sink_rows && AnyExact(job)) {
      const int64_t at = ((int64_t{job.sink} * p.num_kv_heads + head) * 2 + side) * (kMaxSinkTokens * 2 * kDim);
      CopyExactRows<kDim>(MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, side), job, p.sink_rows + at);
    }
    if (job.table_entry >= 0 && p.page_table && head == 0 && side == 0 && threadIdx.x == 0) p.page_table[job.table_entry] = job.target;
  }
};

template <bool kRazor, int kDim, int kCtasPerSm>
__global__ void __launch_bounds__(SealKernel<kRazor, kDim>::kThreads, kCtasPerSm) Seal(const SealParams p) {
  SealKernel<kRazor, kDim>::Run(p);
}

}  // namespace kvrazor::cuda
