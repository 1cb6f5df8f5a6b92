// What the steps of sealing razor keys share (seal_razor_key.cuh): the tile in shared memory, and who does what with kSplit = 1 and 4.
#pragma once

#include <cooperative_groups.h>

#include <type_traits>

#include "src/backends/cuda/metric_layout.h"
#include "src/backends/cuda/seal_quarters.cuh"
#include "src/backends/cuda/seal_tile.cuh"

namespace kvrazor::cuda {

template <class PackedPage, int kDim_, int kBits_, bool kRankOne_, int kSplit_>
struct RazorKeyTile {
  using Page = PackedPage;
  static constexpr int kDim = kDim_, kBits = kBits_, kSplit = kSplit_;
  static constexpr bool kRankOne = kRankOne_;
  using Tile = RowTile16<kDim>;
  using Metric = MetricLayout<kDim>;
  static constexpr int kThreads = 128;
  static constexpr int kStrip = 32;  // tokens
  static constexpr int kStrips = kTokens / kStrip;
  static constexpr int kBlocks = Metric::kBlocks;
  static constexpr int kMaxSums = 11;  // of a token by quarters
  static_assert(kSplit == 1 || kSplit == kStrips);
  static constexpr bool kWhole = kSplit == 1;
  static constexpr float kMost = (1 << kBits) - 1;  // largest code
  static constexpr float kMiddle = kMost / 2;

  /// Only with kSplit = 4.
  struct Shares {
    alignas(16) uint8_t metric[Metric::kBytes];
    float column[kDim];                         // sums over the strip
    uint64_t arrived;                           // barrier of the copy of the metric
  };
  struct Nothing {};
  struct Shared {
    uint32_t tile[kTokens / kSplit][kDim];
    float scratch[kStrips / kSplit][16][kStrip];  // b of a block: channel c of token t at Fed(c, t)
    float mean[kDim];
    float reduce[8];
    float mean_square;
    float scale[kTokens / kSplit];       // s'
    uint16_t factor[kTokens / kSplit];   // a, f16; kRankOne
    int16_t stored_mean[kDim];
    std::conditional_t<kWhole, OneThread, QuarterSums<kMaxSums>> quarters;  // of a token's sums
    std::conditional_t<kWhole, Nothing, Shares> shares;
  };

  __device__ static int Warp() { return static_cast<int>(threadIdx.x / 32); }
  /// Barrier of the threads that share a strip; of those that share a page.
  __device__ static void SyncStrip() {
    if constexpr (kWhole) {
      __syncwarp();
    } else {
      __syncthreads();
    }
  }
  __device__ static void SyncPage() {
    if constexpr (kWhole) {
      __syncthreads();
    } else {
      ClusterArrive();
      ClusterWait();
    }
  }
  /// A strip's own or another CTA's shared memory.
  template <class T>
  __device__ static const T* OfStrip(const T* mine, int strip) {
    if constexpr (kWhole) return mine;
    return cooperative_groups::this_cluster().map_shared_rank(mine, strip);
  }
  __device__ static const uint8_t* SharedMetric(Shared& s) {
    if constexpr (!kWhole) {
      BarrierWait(SharedAddress(&s.shares.arrived), 0);
      return s.shares.metric;
    }
    return nullptr;
  }
  template <class T>
  __device__ static T Read(const T* metric) {
    if constexpr (kWhole) return __ldg(metric);
    return *metric;
  }

  __device__ static int Swizzle(int token) { return ((token & 1) << 2) | ((token >> 1) & 3); }
  __device__ static uint4* Chunk(Shared& s, int token, int chunk) {
    return reinterpret_cast<uint4*>(s.tile[token]) + (chunk ^ Swizzle(token));
  }
  __device__ static float4* FloatChunk(Shared& s, int token, int chunk) { return reinterpret_cast<float4*>(Chunk(s, token, chunk)); }
  /// fn(r) for the chunks of a quarter of a token.
  template <int kUnroll, class Fn>
  __device__ static void OverChunks(int token, int quarter, Shared& s, Fn fn) {
#pragma unroll kUnroll
    for (int x = 0; x < kDim / 16; ++x) fn(FloatChunk(s, token, quarter * (kDim / 16) + x), quarter * (kDim / 16) + x);
  }
};

}  // namespace kvrazor::cuda
