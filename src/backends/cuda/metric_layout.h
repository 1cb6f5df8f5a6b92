// Where the factor of a head's query metric lies in device memory: A = M D / tr M + 0.2 I = G G^T, W_ic = G_ic / G_cc (i < c), d_c = G_cc^2
// (backends/cpu/query_metric-inl.h). Written by FactorMetric, read when razor keys are sealed. kDim = D.
#pragma once

#include <cstdint>

namespace kvrazor::cuda {

template <int kDim>
struct MetricLayout {
  static constexpr int kBlock =
      16;  // channels that feed back into each other one by one; later blocks take tensor cores
  static constexpr int kBlocks = kDim / kBlock;
  /// uint4 [kBlocks kt][kBlocks b][high, low][32 lanes = 4 g + q]: I + W = high + low in f16, pairs of channels i = 16 kt + 4 q + {0, 1} of
  /// c = 16 b + g and g + 8, then i + 2 likewise: operand A of mma.m16n8k16. 0 where i > c.
  static constexpr int kFragments = 0;
  /// f32 [kBlocks][16 i][16 c]: W within a block.
  static constexpr int kWithin = kFragments + kBlocks * (kDim / 8) * 32 * 16;
  static constexpr int kPivots = kWithin + kBlocks * kBlock * kBlock * 4;  // f32 [D] d_c
  static constexpr int kBytes = kPivots + kDim * 4;
};
static_assert(MetricLayout<128>::kBytes == 74240);

}  // namespace kvrazor::cuda
