// Seals plain pages, for every codec and head_dim. A CTA takes one head and side of a page; rows are read and rotated again in every pass over
// them: right, not fast.
//
//   grid (kv heads, storing blocks + pages, 2 sides)
#pragma once

#include "src/backends/cuda/plain_seal_affine.cuh"
#include "src/backends/cuda/plain_seal_page.cuh"
#include "src/backends/cuda/plain_seal_razor.cuh"
#include "src/backends/cuda/store_rows.cuh"

namespace kvrazor::cuda {

template <int kDim>
struct PlainSeal {
  using Page = PlainSealPage<kDim>;
  using Job = typename Page::Job;
  using Shared = typename Page::Shared;
  static constexpr int kThreads = Page::kThreads;

  __device__ static void Run(const SealParams& p, const PlainPage& plain, Shared& s) {
    const int head = blockIdx.x, side = blockIdx.z, worker = static_cast<int>(blockIdx.y) - p.store.num_blocks;
    if (worker < 0) return StoreNewRows<kDim>(p.store, p.num_kv_heads, head, side, blockIdx.y);
    const PlainSide& format = side == 0 ? plain.k : plain.v;
    if (threadIdx.x < 16) s.level[threadIdx.x] = format.level[threadIdx.x];
    if (threadIdx.x < 15) s.threshold[threadIdx.x] = format.threshold[threadIdx.x];
    __syncthreads();
    const int workers = static_cast<int>(gridDim.y) - p.store.num_blocks;
    for (int index = NextJob(p.jobs, p.num_jobs, worker, workers); index < p.num_jobs; index = NextJob(p.jobs, p.num_jobs, index + workers, workers)) {
      const SealJob job = p.jobs[index];
      uint8_t* page = p.packed_pages + job.target * plain.page_bytes + (side == 0 ? 0 : plain.k.at.page_bytes);
      const Job j{p, format, job, MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, side), head, side == 0, page,
                  page + format.at.heads_at + head * format.at.head_bytes};
      Page::Clear(j);
      switch (format.codec) {
        case Codec::kAffine: PlainSealAffine<kDim>::Affine(j, s); break;
        case Codec::kCodebook: PlainSealAffine<kDim>::Codebook(j, s); break;
        case Codec::kRazorKey: PlainSealRazor<kDim>::Keys(j, s); break;
        case Codec::kRazorValue: PlainSealRazor<kDim>::Values(j, s); break;
        case Codec::kF16: break;  // never sealed
      }
      __syncthreads();
      Page::WriteCodes(j, s);
      if (job.sink >= 0 && p.sink_rows && AnyExact(job)) {
        const int64_t at = ((int64_t{job.sink} * p.num_kv_heads + head) * 2 + side) * (kMaxSinkTokens * 2 * kDim);
        CopyExactRows<kDim>(j.rows, job, p.sink_rows + at);
      }
      if (job.table_entry >= 0 && p.page_table && head == 0 && side == 0 && threadIdx.x == 0) p.page_table[job.table_entry] = job.target;
      __syncthreads();
    }
  }
};

template <int kDim>
__global__ __launch_bounds__(PlainSeal<kDim>::kThreads) void SealPlain(const __grid_constant__ SealParams p, const __grid_constant__ PlainPage page) {
  extern __shared__ uint4 shared[];
  PlainSeal<kDim>::Run(p, page, *reinterpret_cast<typename PlainSeal<kDim>::Shared*>(shared));
}

}  // namespace kvrazor::cuda
