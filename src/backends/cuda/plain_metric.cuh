// Second moment and its factor for every head_dim and card, on CUDA cores: right, not fast. metric.cu has the fast ones.
//
//   AddQueries  CTA (32 x 32 of M, head), 256 threads: 32 rows of queries at a time, rotated in f32 in shared memory; four sums a thread
//   Factor      a CTA a head, 1024 threads: reverse Cholesky as in metric.cu, in place in device memory (D = 256: 256 KB do not fit a CTA)
#pragma once

#include "src/backends/cuda/metric_params.h"
#include "src/backends/cuda/plain_metric.h"
#include "src/backends/cuda/row_rotation.cuh"

namespace kvrazor::cuda {

template <int kDim>
struct PlainMoment {
  static constexpr int kThreads = 256, kBatchRows = 32, kTile = 32, kCount = kDim / 32;

  struct Shared {
    float rows[kBatchRows][kDim];
  };
  static_assert(sizeof(Shared) <= 48 * 1024, "what every kernel may use without asking");

  /// Row n of the sample, rotated; 0 behind the end, and where a value is not finite.
  __device__ static void LoadRow(const QueryParams& p, int kv_head, int64_t n, float (&x)[kCount]) {
    const int lane = threadIdx.x & 31;
    uint32_t bad = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = 0;
    if (n >= p.num_rows) return;
    const int64_t token = n / p.gqa_ratio * p.sample, head = int64_t{kv_head} * p.gqa_ratio + n % p.gqa_ratio;
    const uint32_t* at = reinterpret_cast<const uint32_t*>(p.q + token * p.token_bytes + head * p.head_bytes) + kCount / 2 * lane;
#pragma unroll
    for (int i = 0; i < kCount / 2; ++i) {
      const uint32_t w = __ldg(at + i);
      bad |= FiniteOrZero(w) != w;
      x[2 * i] = __low2float(AsHalf2(w));
      x[2 * i + 1] = __high2float(AsHalf2(w));
    }
    if (__any_sync(~0u, bad)) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] = 0;
    }
    RotateOverWarp(x);
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] *= RotationFactor<kDim>(true);
  }

  __device__ static void Run(const QueryParams& p, Shared& s) {
    const int head = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const int row = kTile * blockIdx.y + threadIdx.x / 8, column = kTile * blockIdx.x + threadIdx.x % 8 * 4;
    float sum[4] = {};
    for (int64_t first = 0; first < p.num_rows; first += kBatchRows) {
      __syncthreads();
      for (int n = warp; n < kBatchRows; n += kThreads / 32) {
        float x[kCount];
        LoadRow(p, head, first + n, x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) s.rows[n][kCount * lane + i] = x[i];
      }
      __syncthreads();
#pragma unroll 4
      for (int n = 0; n < kBatchRows; ++n) {
#pragma unroll
        for (int i = 0; i < 4; ++i) sum[i] = fmaf(s.rows[n][row], s.rows[n][column + i], sum[i]);
      }
    }
    float* to = p.moment + (int64_t{head} * kDim + row) * kDim + column;
#pragma unroll
    for (int i = 0; i < 4; ++i) to[i] = fmaf(p.keep, to[i], sum[i]);
  }
};

template <int kDim>
__global__ __launch_bounds__(PlainMoment<kDim>::kThreads) void AddQueriesPlain(const __grid_constant__ QueryParams p) {
  extern __shared__ uint4 shared[];
  PlainMoment<kDim>::Run(p, *reinterpret_cast<typename PlainMoment<kDim>::Shared*>(shared));
}

inline constexpr int kPlainFactorThreads = 1024;

template <int kDim>
__global__ __launch_bounds__(kPlainFactorThreads) void FactorPlain(const float* moments, float* metrics) {
  __shared__ float pivot_row[kDim];
  __shared__ float shared_trace;
  const float* moment = moments + int64_t{blockIdx.x} * kDim * kDim;
  float* a = metrics + int64_t{blockIdx.x} * PlainMetricFloats(kDim);  // [D][D]: A on and below the diagonal, W above
  float* pivots = a + kDim * kDim;
  const int tid = threadIdx.x, warp = tid / 32, lane = tid & 31;
  if (warp == 0) {
    float trace = 0;
    for (int c = lane; c < kDim; c += 32) trace += moment[c * kDim + c];
    trace = SumOverWarp(trace);
    if (lane == 0) shared_trace = trace;
  }
  __syncthreads();
  const float trace = shared_trace, scale = static_cast<float>(kDim) / trace;
  const bool seen = trace > 0 && isfinite(trace) && isfinite(scale);
  for (int i = tid; i < kDim * kDim; i += kPlainFactorThreads) {
    const int row = i / kDim, column = i % kDim;
    const float one = row == column ? 1.f : 0.f;
    if (column <= row) a[i] = seen ? fmaf(kMetricDamping, one, moment[i] * scale) : one;
  }
  __syncthreads();
  for (int j = kDim - 1; j >= 0; --j) {
    for (int k = tid; k <= j; k += kPlainFactorThreads) pivot_row[k] = a[j * kDim + k];
    __syncthreads();
    // A positive definite matrix keeps its pivots above the damping; rounding may not.
    const float pivot = fmaxf(pivot_row[j], 0.5f * kMetricDamping), inverse = __fdiv_rn(1.f, pivot);
    if (tid == 0) pivots[j] = pivot;
    for (int i = warp; i < j; i += kPlainFactorThreads / 32) {
      const float factor = pivot_row[i] * inverse;
      for (int k = lane; k <= i; k += 32) a[i * kDim + k] = fmaf(-factor, pivot_row[k], a[i * kDim + k]);
    }
    for (int i = tid; i < j; i += kPlainFactorThreads) a[i * kDim + j] = pivot_row[i] * inverse;  // W_ij
    __syncthreads();
  }
}

}  // namespace kvrazor::cuda
