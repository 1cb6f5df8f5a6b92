// Where rows that were read back go, and the exact tokens among them.
#pragma once

#include "src/backends/cuda/dequantize_params.h"
#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

/// Where the rows of one head and side go.
struct RowTarget {
  uint8_t* base;
  int64_t token_bytes;
  int swizzle;
  __device__ uint4* Chunk(int token, int chunk) const {
    return reinterpret_cast<uint4*>(base + token * token_bytes + ((chunk ^ (token & swizzle)) * 16));
  }
};

template <int kDim>
__device__ __forceinline__ RowTarget MakeRowTarget(const DequantizeParams& p, const DequantizeJob& job, int head, int side) {
  const int64_t block = (int64_t{~job.target} * p.num_kv_heads + head) * 2 + side;
  if (job.target < 0) return {p.row_pages + block * (kTokens * 2 * kDim), 2 * kDim, 7};
  return {(side == 0 ? p.k : p.v) + job.target * p.token_bytes + head * p.head_bytes, p.token_bytes, 0};
}

/// Tokens in front that come from sink rows instead.
__device__ __forceinline__ int ExactTokens(const DequantizeParams& p, const DequantizeJob& job) { return job.sink >= 0 && p.sink_rows ? job.exact_tokens : 0; }

/// By all threads of the CTA.
template <int kDim>
__device__ __forceinline__ void CopySinkRows(const DequantizeParams& p, const DequantizeJob& job, int head, int side, const RowTarget& out) {
  const int64_t from = ((int64_t{job.sink} * p.num_kv_heads + head) * 2 + side) * (kMaxSinkTokens * 2 * kDim);
  for (int i = threadIdx.x; i < ExactTokens(p, job) * (kDim / 8); i += blockDim.x) {
    const int token = i / (kDim / 8), chunk = i % (kDim / 8);
    *out.Chunk(token, chunk) = *reinterpret_cast<const uint4*>(p.sink_rows + from + RowByte<kDim>(token, 8 * chunk));
  }
}

}  // namespace kvrazor::cuda
