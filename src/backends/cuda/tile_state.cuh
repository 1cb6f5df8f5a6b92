// What a consumer warp carries from unit to unit: query fragments and the running softmax.
//
// Columns of every product (N = 8) are query rows, most often query heads. With keys a tile has 4 rows: row q is in the columns 2q and
// 2q + 1 as the high and low part of one number (bytes of razor's int8, f16 numbers of affine pages). With values, and with 16-bit keys, a
// tile's row q is in column 2q, and row q + 4 of the second tile in column 2q + 1. So a lane 4 g + q always holds row q (and q + 4), and of
// these the channels 16 j + g + 8 r as out[2 j + r].
#pragma once

#include "src/backends/cuda/ptx.cuh"

namespace kvrazor::cuda {

inline constexpr float kNoLogit = -1e30f;  // where a maximum starts
inline constexpr float kHidden = -1e38f;   // of a token that is not seen: weight 0 whatever the maximum

/// 1 / sqrt(D)
template <int kDim>
inline constexpr float kHadamardNorm = kDim == 64 ? 0.125f : kDim == 128 ? 0.08838834764831845f : 0.0625f;

template <int kDim, int kTiles>
struct RunningSoftmax {
  float out[kTiles][kDim / 8];
  float top[kTiles];   // log2
  float sum[kTiles];   // of this lane's tokens

  __device__ void Clear() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      top[n] = kNoLogit;
      sum[n] = 0;
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) out[n][i] = 0;
    }
  }

  /// Raises the maximum to at least `logit`; returns the factor that what was summed has taken. All lanes of the warp.
  __device__ float Raise(int n, float logit) {
    if (!__any_sync(~0u, logit > top[n])) return 1;
    const float higher = fmaxf(top[n], logit);
    const float factor = Exp2(top[n] - higher);
    top[n] = higher;
    sum[n] *= factor;
#pragma unroll
    for (int i = 0; i < kDim / 8; ++i) out[n][i] *= factor;
    return factor;
  }

  /// Around sealed pages: a codec that sums in units of its own has its own.
  __device__ void EnterPages() {}
  __device__ void LeavePages() {}

  /// out <- H out, H the Hadamard matrix / sqrt(D): between the basis of sealed pages and the model's.
  __device__ void Rotate() {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int o = 1; o < kDim / 8; o <<= 1) {
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) {
          if (i & o) continue;
          const float x = out[n][i], y = out[n][i | o];
          out[n][i] = x + y;
          out[n][i | o] = x - y;
        }
      }
      const int lane = threadIdx.x & 31;
#pragma unroll
      for (int o = 4; o < 32; o <<= 1) {
        const float sign = (lane & o) ? -1.f : 1.f;
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) out[n][i] = fmaf(sign, out[n][i], __shfl_xor_sync(~0u, out[n][i], o));
      }
#pragma unroll
      for (int i = 0; i < kDim / 8; ++i) out[n][i] *= kHadamardNorm<kDim>;
    }
  }
};

/// Largest value over the eight g of each q.
__device__ __forceinline__ float MaxOverRows(float x) {
#pragma unroll
  for (int o = 4; o < 32; o <<= 1) x = fmaxf(x, __shfl_xor_sync(~0u, x, o));
  return x;
}

/// f16 query fragments of mma.m16n8k16, in the model's basis or rotated; [D/16][32 lanes] uint2 in shared memory.
template <int kDim>
inline constexpr int kF16QueryBytes = kDim / 16 * 32 * 8;

}  // namespace kvrazor::cuda
