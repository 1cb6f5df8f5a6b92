// Steps 1 and 2 of sealing razor keys (seal_razor_key.cuh): rows, the page's mean, and each token's best scale.
#pragma once

#include "src/backends/cuda/seal_razor_key_tile.cuh"

namespace kvrazor::cuda {

template <class KeyTile>
struct RazorKeyScale : KeyTile {
  using typename KeyTile::Shared;
  using typename KeyTile::Tile;
  using KeyTile::kBits, KeyTile::kDim, KeyTile::kMiddle, KeyTile::kMost, KeyTile::kRankOne, KeyTile::kSplit, KeyTile::kStrip, KeyTile::kStrips,
      KeyTile::kWhole;
  using KeyTile::Chunk, KeyTile::FloatChunk, KeyTile::OfStrip, KeyTile::Swizzle, KeyTile::Warp;

  // ---- 1
  __device__ static void Load(const SealParams& p, const SealJob& job, int head, int first, Shared& s) {
    const RowSource rows = MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, 0);
    const float rotation = RotationFactor<kDim>(p.rotate);
    const int g = (threadIdx.x & 31) >> 2, q = threadIdx.x & 3;
    constexpr int kTiles = kTokens / kSplit / 16;
#pragma unroll 1
    for (int tile = Warp(); tile < kTiles; tile += 4) {
      const int local[2] = {16 * tile + g, 16 * tile + g + 8};
      const int token[2] = {first + local[0], first + local[1]};
      typename Tile::Raw raw;
      Tile::Load(rows, token, raw);
      float x[2][Tile::kValues];
      Tile::template Rotate<false>(p.rotate, raw, x);
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float factor = IsExact(job, token[r]) ? 0.f : rotation;
#pragma unroll
        for (int k = 0; k < Tile::kValues; k += 2) {
          float2* at = reinterpret_cast<float2*>(Chunk(s, local[r], 2 * (k / 2) + q / 2)) + q % 2;
          *at = make_float2(x[r][k] * factor, x[r][k + 1] * factor);
        }
      }
    }
  }

  /// Sum of a column over a strip.
  __device__ static float ColumnSum(const Shared& s, int first, int c) {
    float sum = 0;
#pragma unroll 8
    for (int t = first; t < first + kStrip; ++t) sum += __uint_as_float(s.tile[t][((c / 4) ^ Swizzle(t)) * 4 + c % 4]);
    return sum;
  }

  __device__ static void Mean(const SealJob& job, Shared& s) {
    const int c = threadIdx.x;
    const int count = kTokens - __popc(job.exact[0]) - __popc(job.exact[1]) - __popc(job.exact[2]) - __popc(job.exact[3]);
    float part[kStrips] = {};
    if constexpr (kWhole) {
      if (c < kDim) {
#pragma unroll
        for (int i = 0; i < kStrips; ++i) part[i] = ColumnSum(s, i * kStrip, c);
      }
    } else {
      if (c < kDim) s.shares.column[c] = ColumnSum(s, 0, c);
      ClusterArrive();
      ClusterWait();
      if (c < kDim) {
#pragma unroll
        for (int i = 0; i < kStrips; ++i) part[i] = OfStrip(s.shares.column, i)[c];
      }
    }
    const float mean = count > 0 ? ((part[0] + part[1]) + (part[2] + part[3])) * (1.f / static_cast<float>(count)) : 0.f;
    float largest = fabsf(mean);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    if ((c & 31) == 0) s.reduce[c / 32] = largest;
    __syncthreads();
    const float scale = fmaxf(fmaxf(s.reduce[0], s.reduce[1]), fmaxf(s.reduce[2], s.reduce[3])) / 32767.f;
    if (c < kDim) {
      const float steps = scale > 0 ? fminf(fmaxf(rintf(mean / scale), -32767.f), 32767.f) : 0.f;
      s.stored_mean[c] = static_cast<int16_t>(steps);
      s.mean[c] = steps * scale;
    }
    if (c == 0) s.reduce[4] = scale;
    __syncthreads();
    if constexpr (kRankOne) {
      if (c < 32) {
        float square = 0;
#pragma unroll
        for (int i = 0; i < kDim / 32; ++i) square = fmaf(s.mean[c + 32 * i], s.mean[c + 32 * i], square);
#pragma unroll
        for (int mask = 16; mask > 0; mask /= 2) square += __shfl_xor_sync(~0u, square, mask);
        if (c == 0) s.mean_square = square;
      }
      __syncthreads();
    }
  }

  // ---- 2
  __device__ static float TokenScale(bool exact, int token, Shared& s) {
    const auto add = []<int kCount>(float (&to)[kCount], const float (&from)[kCount]) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] += from[i];
    };
    float factor = 1;
    if constexpr (kRankOne) {
      float dot[1];
      OverQuarters(s.quarters, 0, dot, [&](int quarter, float (&sum)[1]) {
        KeyTile::template OverChunks<4>(token, quarter, s, [&](const float4* at, int x) {
          const float4 y = *at, m = *reinterpret_cast<const float4*>(&s.mean[4 * x]);
          sum[0] = fmaf(y.w, m.w, fmaf(y.z, m.z, fmaf(y.y, m.y, fmaf(y.x, m.x, sum[0]))));
        });
      }, add);
      factor = dot[0] * (s.mean_square > 0 ? __fdiv_rn(1.f, s.mean_square) : 0.f);
      const uint16_t stored = exact || !isfinite(factor) ? 0 : SaturatedF16(factor + 0.f);
      factor = FromF16(stored);
      if (kWhole || threadIdx.x < kStrip) s.factor[token] = stored;
    }
    float size[2];  // sum |r|, largest |r|
    OverQuarters(s.quarters, 1, size, [&](int quarter, float (&sum)[2]) {
      KeyTile::template OverChunks<4>(token, quarter, s, [&](float4* at, int x) {
        const float4 mean = *reinterpret_cast<const float4*>(&s.mean[4 * x]);
        float4 r = *at;
        r = make_float4(fmaf(-factor, mean.x, r.x), fmaf(-factor, mean.y, r.y), fmaf(-factor, mean.z, r.z), fmaf(-factor, mean.w, r.w));
        *at = r;
        sum[0] += fabsf(r.x);
        sum[0] += fabsf(r.y);
        sum[0] += fabsf(r.z);
        sum[0] += fabsf(r.w);
        sum[1] = fmaxf(fmaxf(sum[1], fmaxf(fabsf(r.x), fabsf(r.y))), fmaxf(fabsf(r.z), fabsf(r.w)));
      });
    }, [](float (&to)[2], const float (&from)[2]) {
      to[0] += from[0];
      to[1] = fmaxf(to[1], from[1]);
    });
    // Candidates: each clip, and refitted once more; <r, l> and <l, l> of each.
    constexpr int kClips = kBits == 2 ? 5 : 3;
    float clip[kClips], best_score = 0, best = 0;
#pragma unroll
    for (int i = 0; i < kClips; ++i) clip[i] = size[1] * ((1.f - 0.1f * i) * 2 / kMost);
#pragma unroll 1
    for (int round = 0; round < 2; ++round) {
      float sums[2 * kClips];
      OverQuarters(s.quarters, round, sums, [&](int quarter, float (&sum)[2 * kClips]) {
        if constexpr (kBits == 2) {
          Above(token, quarter, clip, s, sum);
        } else {
          Fit(token, quarter, clip, s, sum);
        }
      }, add);
#pragma unroll
      for (int i = 0; i < kClips; ++i) {
        // 2 bits: |l| is 3/2 where |r| > s, else 1/2, so <r, l> = sum|r| / 2 + sum of the |r| above s.
        const float a = kBits == 2 ? fmaf(0.5f, size[0], sums[i]) : sums[i];
        const float b = kBits == 2 ? fmaf(sums[kClips + i], 2.f, 0.25f * kDim) : sums[kClips + i];
        clip[i] = __fdiv_rn(a, b);
        const float score = a * clip[i];
        if (score > best_score) {
          best_score = score;
          best = clip[i];
        }
      }
    }
    return exact ? 0.f : best;
  }
  template <int kClips>
  __device__ static void Above(int token, int quarter, const float (&clip)[kClips], Shared& s, float (&sum)[2 * kClips]) {
    KeyTile::template OverChunks<2>(token, quarter, s, [&](const float4* at, int) {
      const float4 r = *at;
      const float values[4] = {fabsf(r.x), fabsf(r.y), fabsf(r.z), fabsf(r.w)};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int i = 0; i < kClips; ++i) {
          if (values[e] > clip[i]) {
            sum[i] += values[e];
            sum[kClips + i] += 1.f;
          }
        }
      }
    });
  }
  template <int kClips>
  __device__ static void Fit(int token, int quarter, const float (&clip)[kClips], Shared& s, float (&sum)[2 * kClips]) {
    float part[kClips];  // of a code's steps
#pragma unroll
    for (int i = 0; i < kClips; ++i) part[i] = clip[i] > 0 ? __fdiv_rn(1.f / kMost, clip[i]) : 0.f;
    KeyTile::template OverChunks<2>(token, quarter, s, [&](const float4* at, int) {
      const float4 r = *at;
      const float values[4] = {r.x, r.y, r.z, r.w};
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int i = 0; i < kClips; ++i) {
          const float level = (fmaf(SaturatedMultiplyAdd(values[e], part[i], 0.5f), kMost, kCodeMagic) - kCodeMagic) - kMiddle;
          sum[i] = fmaf(values[e], level, sum[i]);
          sum[kClips + i] = fmaf(level, level, sum[kClips + i]);
        }
      }
    });
  }
};

}  // namespace kvrazor::cuda
