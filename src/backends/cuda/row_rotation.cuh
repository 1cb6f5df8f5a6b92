// The Hadamard rotation of one row by one warp, for every head_dim. A lane holds D / 32 channels side by side, so the lowest channel bits are
// registers and the others lanes; stages run from the lowest bit up, the order of sums of all backends.
#pragma once

#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

/// x <- H x without the factor 1 / sqrt(32 kCount). Lane l has channels kCount l + i.
template <int kCount>
__device__ __forceinline__ void RotateOverWarp(float (&x)[kCount]) {
  static_assert(kCount == 2 || kCount == 4 || kCount == 8);
  RegisterStage<1>(x);
  if constexpr (kCount > 2) RegisterStage<2>(x);
  if constexpr (kCount > 4) RegisterStage<4>(x);
  LaneStage<1>(x);
  LaneStage<2>(x);
  LaneStage<4>(x);
  LaneStage<8>(x);
  LaneStage<16>(x);
}

__device__ __forceinline__ float SumOverWarp(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += __shfl_xor_sync(~0u, x, mask);
  return x;
}

/// kCount f16 values of a row from channel kCount * lane on, as they lie in memory; 0 where a value is not finite.
template <int kCount>
__device__ __forceinline__ void LoadLane(const RowSource& rows, int token, float (&x)[kCount]) {
  const int channel = kCount * static_cast<int>(threadIdx.x & 31);
  const uint32_t* at = reinterpret_cast<const uint32_t*>(rows.At(token, channel / 8) + channel % 8 * 2);
#pragma unroll
  for (int i = 0; i < kCount / 2; ++i) {
    const float2 v = __half22float2(AsHalf2(FiniteOrZero(__ldg(at + i))));
    x[2 * i] = v.x;
    x[2 * i + 1] = v.y;
  }
}

}  // namespace kvrazor::cuda
