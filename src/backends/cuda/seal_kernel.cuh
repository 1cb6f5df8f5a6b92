// One launch of append and seal. A worker seals one head and side of pages y, y + workers, ..., or a CTA stores rows of new tokens.
//
//   affine                  grid (kv heads, storing blocks + workers, 1 or 2 sides); with token scales the heads of a page are one cluster
//   razor, many pages       grid (workers, kv heads, 2 sides)
//   razor, time of a page   grid (kv heads times 4, storing blocks + workers, 2 sides); the four CTAs of a head, side and page are one cluster
#pragma once

#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/seal_affine.cuh"
#include "src/backends/cuda/seal_razor_key.cuh"
#include "src/backends/cuda/seal_razor_value.cuh"
#include "src/backends/cuda/store_rows.cuh"

namespace kvrazor::cuda {

/// Form::kForm is a PageForm: nvcc takes no class as a kernel's template argument.
template <class Form, int kSplit>
struct SealKernel {
  static constexpr PageForm kForm = Form::kForm;
  static constexpr int kDim = kForm.head_dim;
  static constexpr bool kRazor = kForm.kind == PageKind::kRazor;
  // Of the two kinds, one is never instantiated further than its size.
  using Affine = AffineSeal<kDim, kRazor ? 2 : kForm.key_bits, kForm.value_bits>;
  static constexpr int kRazorBits = kRazor ? kForm.key_bits : 2;
  using RazorPageOf = RazorPage<kDim, kRazorBits, kForm.rank_one_mean, kForm.value_groups>;
  using Key = RazorKeySeal<RazorPageOf, kDim, kRazorBits, kForm.rank_one_mean, kSplit>;
  using Value = RazorValueSeal<RazorPageOf, kDim, kForm.value_groups, kSplit>;
  static constexpr int kThreads = kRazor ? Key::kThreads : Affine::kThreads;
  /// CTAs a multiprocessor: as many as shared memory holds; two where the time of one page counts.
  static constexpr int kCtasPerSm = kSplit > 1 || !kRazor ? 2 : kDim == 64 ? 4 : 3;
  static constexpr int kSharedBytes = static_cast<int>(kRazor ? (sizeof(typename Key::Shared) > sizeof(typename Value::Shared) ? sizeof(typename Key::Shared) : sizeof(typename Value::Shared))
                                                              : sizeof(typename Affine::Shared));

  __device__ static void Run(const SealParams& p) {
    extern __shared__ uint4 shared[];
    if constexpr (!kRazor) {
      RunAffine(p, *reinterpret_cast<typename Affine::Shared*>(shared));
    } else if constexpr (kSplit == 1) {
      // Neighbours seal the same head: what they read of its metric is in the first-level cache more often.
      if (blockIdx.z == 0) {
        RunRazor<Key>(p, blockIdx.y, 0, blockIdx.x, gridDim.x, 0, *reinterpret_cast<typename Key::Shared*>(shared));
      } else {
        RunRazor<Value>(p, blockIdx.y, 1, blockIdx.x, gridDim.x, 0, *reinterpret_cast<typename Value::Shared*>(shared));
      }
    } else {
      const int head = blockIdx.x / kSplit, share = blockIdx.x % kSplit, side = blockIdx.z;
      const int worker = static_cast<int>(blockIdx.y) - p.store.num_blocks, workers = static_cast<int>(gridDim.y) - p.store.num_blocks;
      if (worker < 0) {
        StoreNewRows<kDim>(p.store, p.num_kv_heads, head, side, static_cast<int>(blockIdx.y) * kSplit + share);
      } else if (side == 0) {
        RunRazor<Key>(p, head, 0, worker, workers, share, *reinterpret_cast<typename Key::Shared*>(shared));
      } else {
        RunRazor<Value>(p, head, 1, worker, workers, share, *reinterpret_cast<typename Value::Shared*>(shared));
      }
    }
  }

 private:
  template <class Side>
  __device__ static void RunRazor(const SealParams& p, int head, int side, int worker, int workers, int share, typename Side::Shared& s) {
    // The same for all CTAs of a cluster.
    int index = NextJob(p.jobs, p.num_jobs, worker, workers);
    if (index < p.num_jobs) Side::Begin(p, head, s);
    for (; index < p.num_jobs; index = NextJob(p.jobs, p.num_jobs, index + workers, workers)) {
      const SealJob job = p.jobs[index];
      Side::Run(p, job, head, share, Out(p, job, head), s);
      if (share == 0) Finish(p, job, head, side);
      __syncthreads();
    }
  }

  /// A page is fetched while the one before is sealed. With one side in the grid a worker seals the keys of all its pages, then the values.
  __device__ static void RunAffine(const SealParams& p, typename Affine::Shared& s) {
    const int head = blockIdx.x, last_side = gridDim.z == 1 ? 1 : blockIdx.z;
    const int worker = static_cast<int>(blockIdx.y) - p.store.num_blocks, workers = static_cast<int>(gridDim.y) - p.store.num_blocks;
    if (worker < 0) return StoreNewRows<kDim>(p.store, p.num_kv_heads, head, blockIdx.z, blockIdx.y);
    int side = blockIdx.z;
    int index = NextJob(p.jobs, p.num_jobs, worker, workers);
    if (index >= p.num_jobs) return;
    SealJob job = p.jobs[index];
    Affine::Begin(p, s);
    Affine::Fetch(p, job, head, side, s);
    for (int turn = 0; index < p.num_jobs; ++turn) {  // keys first, so that it counts their pages
      const SealJob current = job;
      const int current_side = side;
      index = NextJob(p.jobs, p.num_jobs, index + workers, workers);
      if (index >= p.num_jobs && side < last_side) {
        ++side;
        index = NextJob(p.jobs, p.num_jobs, worker, workers);
      }
      if (index < p.num_jobs) job = p.jobs[index];
      Affine::Run(p, current, head, current_side, turn, Out(p, current, head), s, [&] {
        if (index < p.num_jobs) Affine::Fetch(p, job, head, side, s);
      });
      Finish(p, current, head, current_side);
    }
    Affine::End(p);
  }

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

template <class Form, int kSplit>
__global__ void __launch_bounds__(SealKernel<Form, kSplit>::kThreads, SealKernel<Form, kSplit>::kCtasPerSm) Seal(const SealParams p) {
  SealKernel<Form, kSplit>::Run(p);
}

}  // namespace kvrazor::cuda
