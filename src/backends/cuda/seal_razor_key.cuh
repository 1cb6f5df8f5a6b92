// Seals the keys of one head of a page with razor (formulas: backends/cpu/seal_razor_key.cc), 128 threads. A strip is 32 tokens; a quarter, a
// quarter of the channels. kSplit = 1: a CTA seals a page, a warp a strip, a thread a token (throughput). kSplit = 4: a CTA seals a strip, the
// four of a page are a cluster, a thread has a quarter of a token, a warp a share of the blocks of channels (time of one page). All sums
// are formed in the same order in both, so the bytes are the same.
//
//   1. rows  -> y, rotated (seal_tile.cuh), in shared memory; sums of columns by strips -> mean
//   2. token -> r = y - a mean, the best scale s, by quarters; r / s as two f16 (high + low)
//   3. v = r / s (I + W), block of 16 channels by block                             mma: high high + low high + high low
//   4. blocks, first first: b = levels of earlier blocks times W (mma, levels are exact in f16, W = high + low); then channel by
//      channel: code = rne(v - b + L/2), b of the block's later channels += W level     thread = token
//      feedback in units of s: x / s = v - b, because e = r - s l and x = r + W^T e
//      gain = sum d v^2 / sum d v (l + b)
//   5. codes of 4 channels in a word -> words of the page: tokens 16 apart side by side
//
//   tile     [tokens][D] words in chunks of 4 channels, chunk x of token t at x ^ Swizzle(t): y, r as floats; then {high 0 1, high 2 3, low 0 1,
//            low 2 3}; v as floats; {level 0 1, level 2 3, codes, 0}
//
// Products of 3 and 4 lose 2^-22 of a term: a code differs from float64's only where x / s is that close to a half.
#pragma once

#include <cooperative_groups.h>

#include <type_traits>

#include "src/backends/cuda/metric_layout.h"
#include "src/backends/cuda/seal_tile.cuh"

namespace kvrazor::cuda {

/// EncodeE3M5 of kvrazor/layout.h; base is a power of two or 0.
__device__ __forceinline__ uint8_t DeviceEncodeE3M5(float x, float base) {
  if (!(x > 0) || !(base > 0)) return 0;
  const float r = x / base;
  if (r >= 1.f + 31.f / 32) return 255;
  const int octave = max(static_cast<int>(__float_as_uint(r) >> 23) - 127, -7);  // subnormals are below the range
  const int units = static_cast<int>(rintf(ldexpf(r, 5 - octave)));
  constexpr float kLeast = 0x1p-7f * (1 + 1.f / 32);
  if (units < 32) return r > 0.5f * kLeast ? 1 : 0;
  const int code = ((octave + 7) << 5) + (units - 32);
  return static_cast<uint8_t>(code == 0 ? 1 : code);
}

template <class PackedPage, int kDim, int kBits, bool kRankOne, int kSplit>
struct RazorKeySeal {
  using Page = PackedPage;
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
    float sums[2][kStrips][kMaxSums][kStrip];  // [in turns][quarter]..: parts of a token's sums
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
    std::conditional_t<kWhole, Nothing, Shares> shares;
  };

  /// Once, before the first page: with kSplit = 4 the metric is on its way to shared memory.
  __device__ static void Begin(const SealParams& p, int head, Shared& s) {
    if constexpr (!kWhole) {
      if (!p.metric) return;
      const uint32_t barrier = SharedAddress(&s.shares.arrived);
      if (threadIdx.x == 0) {
        BarrierInit(barrier, 1);
        FenceAsyncProxy();
        BarrierArriveExpect(barrier, Metric::kBytes);
        BulkCopyKept(SharedAddress(s.shares.metric), p.metric + int64_t{head} * Metric::kBytes, Metric::kBytes, barrier);
      }
    }
  }

  /// strip: of this CTA, 0 with kSplit = 1.
  __device__ static void Run(const SealParams& p, const SealJob& job, int head, int strip, uint8_t* out, Shared& s) {
    const int first = strip * kStrip;
    Load(p, job, head, first, s);
    __syncthreads();
    Mean(job, s);
    const int token = kWhole ? threadIdx.x : threadIdx.x & 31;
    const float scale = TokenScale(IsExact(job, first + token), token, s);
    const uint8_t* metric = nullptr;
    if (p.metric) metric = kWhole ? p.metric + int64_t{head} * Metric::kBytes : SharedMetric(s);
    float gain;
    if (metric) {
      Divide<true>(token, scale, s);
      SyncStrip();
      Image(metric, s);
      gain = Codes<true>(metric, scale, s);
    } else {
      Divide<false>(token, scale, s);
      SyncStrip();
      gain = Codes<false>(nullptr, scale, s);
    }
    if (kWhole || threadIdx.x < kStrip) s.scale[token] = gain * scale;
    SyncPage();
    Store(strip, s, out);
    if constexpr (!kWhole) {  // nobody leaves, or writes again, before the others have read
      ClusterArriveRead();
      ClusterWait();
    }
  }

 private:
  // ---- who is who
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
  /// total = parts of the four quarters of a token, merged as (0, 1), (2, 3): part(quarter, sums) and merge(sums, sums).
  template <int kCount, class Part, class Merge>
  __device__ static void OverQuarters(int turn, Shared& s, float (&total)[kCount], Part part, Merge merge) {
    static_assert(kCount <= kMaxSums);
    if constexpr (kWhole) {
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        float a[kCount] = {}, b[kCount] = {};
        part(2 * pair, a);
        part(2 * pair + 1, b);
        merge(a, b);
        if (pair == 0) {
#pragma unroll
          for (int i = 0; i < kCount; ++i) total[i] = a[i];
        } else {
          merge(total, a);
        }
      }
    } else {
      auto& sums = s.shares.sums[turn & 1];
      const int token = threadIdx.x & 31;
      float own[kCount] = {};
      part(Warp(), own);
#pragma unroll
      for (int i = 0; i < kCount; ++i) sums[Warp()][i][token] = own[i];
      __syncthreads();
      float a[kCount], b[kCount];
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        total[i] = sums[0][i][token];
        own[i] = sums[1][i][token];
        a[i] = sums[2][i][token];
        b[i] = sums[3][i][token];
      }
      merge(total, own);
      merge(a, b);
      merge(total, a);
    }
  }
  /// fn(r) for the chunks of a quarter of a token.
  template <int kUnroll, class Fn>
  __device__ static void OverChunks(int token, int quarter, Shared& s, Fn fn) {
#pragma unroll kUnroll
    for (int x = 0; x < kDim / 16; ++x) fn(FloatChunk(s, token, quarter * (kDim / 16) + x), quarter * (kDim / 16) + x);
  }

  __device__ static float TokenScale(bool exact, int token, Shared& s) {
    const auto add = []<int kCount>(float (&to)[kCount], const float (&from)[kCount]) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] += from[i];
    };
    float factor = 1;
    if constexpr (kRankOne) {
      float dot[1];
      OverQuarters(0, s, dot, [&](int quarter, float (&sum)[1]) {
        OverChunks<4>(token, quarter, s, [&](const float4* at, int x) {
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
    OverQuarters(1, s, size, [&](int quarter, float (&sum)[2]) {
      OverChunks<4>(token, quarter, s, [&](float4* at, int x) {
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
      OverQuarters(round, s, sums, [&](int quarter, float (&sum)[2 * kClips]) {
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
    OverChunks<2>(token, quarter, s, [&](const float4* at, int) {
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
    OverChunks<2>(token, quarter, s, [&](const float4* at, int) {
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

  // ---- 3
  /// r / s: two f16 each, high its rounding and low what is left; or as it is.
  template <bool kMetric>
  __device__ static void Divide(int token, float scale, Shared& s) {
    const float inverse = scale > 0 ? __fdiv_rn(1.f, scale) : 0.f;
    const int quarters = kWhole ? 4 : 1, from = kWhole ? 0 : Warp();
#pragma unroll 1
    for (int quarter = from; quarter < from + quarters; ++quarter) {
      OverChunks<4>(token, quarter, s, [&](float4* at, int) {
        float4 r = *at;
        r = make_float4(r.x * inverse, r.y * inverse, r.z * inverse, r.w * inverse);
        if constexpr (kMetric) {
          const uint32_t high01 = PackF16(r.x, r.y), high23 = PackF16(r.z, r.w);
          *reinterpret_cast<uint4*>(at) = make_uint4(high01, high23, PackF16(r.x - LowF16(high01), r.y - HighF16(high01)),
                                                     PackF16(r.z - LowF16(high23), r.w - HighF16(high23)));
        } else {
          *at = r;
        }
      });
    }
  }

  /// I + W of the channels of block kt (k) and `block` (rows) as operand A, its high or low part.
  __device__ static uint4 Weights(const uint8_t* metric, int kt, int block, int low) {
    return Read(reinterpret_cast<const uint4*>(metric + Metric::kFragments) + ((kt * kBlocks + block) * 2 + low) * 32 + (threadIdx.x & 31));
  }
  __device__ static void Multiply(const uint4& a, uint32_t b0, uint32_t b1, float (&c)[4]) { MmaF16(c[0], c[1], c[2], c[3], a.x, a.y, a.z, a.w, b0, b1); }

  /// A lane's rows of a strip as operand B: tokens 8 n + g, whose swizzle is the same. Chunk 4 kt + q holds the lane's four of 16 channels.
  struct Rows {
    uint8_t* base;
    int odd;
    __device__ Rows(Shared& s, int first) {
      const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, swizzle = Swizzle(g);
      base = reinterpret_cast<uint8_t*>(s.tile[first + g]) + ((q ^ (swizzle & 3)) << 4);
      odd = swizzle >> 2;
    }
    __device__ uint8_t* At(int kt, int n) const { return base + ((kt ^ odd) << 6) + n * (8 * kDim * 4); }
  };
  /// Channels 16 block + g, g + 8 of tokens 8 n + 2 q, 2 q + 1: [n][channel g: both tokens, channel g + 8: both tokens].
  using Result = float[4][4];

  /// acc = r / s (I + W).
  __device__ static void ImageOf(const uint8_t* metric, const Rows& rows, int block, Result& acc) {
#pragma unroll 2
    for (int kt = 0; kt <= block; ++kt) {
      const uint4 high = Weights(metric, kt, block, 0), low = Weights(metric, kt, block, 1);
      uint4 r[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) r[n] = *reinterpret_cast<const uint4*>(rows.At(kt, n));
      // Products that wait for each other lie apart.
#pragma unroll
      for (int n = 0; n < 4; ++n) Multiply(high, r[n].x, r[n].y, acc[n]);
#pragma unroll
      for (int n = 0; n < 4; ++n) Multiply(high, r[n].z, r[n].w, acc[n]);
#pragma unroll
      for (int n = 0; n < 4; ++n) Multiply(low, r[n].x, r[n].y, acc[n]);
    }
  }
  __device__ static void PutImage(int first, int block, const Result& acc, Shared& s) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int token = first + 8 * n + 2 * q + e % 2;
        reinterpret_cast<float*>(Chunk(s, token, 4 * block + g / 4 + 2 * (e / 2)))[g % 4] = acc[n][e];
      }
    }
  }
  __device__ static void Image(const uint8_t* metric, Shared& s) {
    if constexpr (kWhole) {
      const int first = threadIdx.x & ~31;
      const Rows rows(s, first);
#pragma unroll 1
      for (int block = kBlocks - 1; block >= 0; --block) {  // in place: block needs those up to it
        Result acc = {};
        ImageOf(metric, rows, block, acc);
        __syncwarp();
        PutImage(first, block, acc, s);
        __syncwarp();
      }
    } else {
      // Warp w takes blocks w and 7 - w (of four blocks: w), as many products as the others.
      constexpr int kShare = kBlocks / 4;
      static_assert(kShare == 1 || kShare == 2);
      const Rows rows(s, 0);
      Result acc[kShare] = {};
#pragma unroll
      for (int i = 0; i < kShare; ++i) ImageOf(metric, rows, i == 0 ? Warp() : kBlocks - 1 - Warp(), acc[i]);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kShare; ++i) PutImage(0, i == 0 ? Warp() : kBlocks - 1 - Warp(), acc[i], s);
      __syncthreads();
    }
  }

  // ---- 4. Returns the gain. Leaves in each chunk: levels as two f16 pairs, the codes of its four channels in the bytes of a word.
  template <bool kMetric>
  __device__ static float Codes(const uint8_t* metric, float scale, Shared& s) {
    float sums[2] = {};  // numerator, denominator of the gain
    const int token = threadIdx.x, strip = Warp();
    if constexpr (kWhole) {
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (kMetric && block > 0) {
          Result acc = {};
          const Rows rows(s, threadIdx.x & ~31);
#pragma unroll 2
          for (int kt = 0; kt < block; ++kt) AddFeedback(metric, rows, kt, block, acc);
          PutFeedback(strip, acc, s);
          __syncwarp();
        }
        CodeBlock<kMetric>(metric, scale > 0, block, token, strip, sums, s);
        __syncwarp();
      }
    } else if constexpr (!kMetric) {
      if (threadIdx.x < kStrip) {
#pragma unroll 1
        for (int block = 0; block < kBlocks; ++block) CodeBlock<false>(nullptr, scale > 0, block, token, 0, sums, s);
      }
    } else {
      // Warp 0 codes; warp w > 0 keeps the feedback to blocks w, w + 3, ..: first of all what the next block waits for.
      constexpr int kOwn = (kBlocks - 1 + 2) / 3;
      Result acc[kOwn] = {};
      const Rows rows(s, 0);
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (Warp() == 0) {
          CodeBlock<true>(metric, scale > 0, block, token, 0, sums, s);
        } else if (block > 0) {
#pragma unroll
          for (int i = 0; i < kOwn; ++i) {
            if (const int to = Warp() + 3 * i; to > block && to < kBlocks) AddFeedback(metric, rows, block - 1, to, acc[i]);
          }
        }
        __syncthreads();
        if (block + 1 == kBlocks) break;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          if (Warp() > 0 && Warp() + 3 * i == block + 1) {
            AddFeedback(metric, rows, block, block + 1, acc[i]);
            PutFeedback(0, acc[i], s);
          }
        }
        __syncthreads();
      }
    }
    constexpr float kLeastGain = 0.7f, kMostGain = 1.6f;
    return sums[1] > 0 ? fminf(fmaxf(__fdiv_rn(sums[0], sums[1]), kLeastGain), kMostGain) : 1.f;
  }

  /// acc += levels of block kt times W to `block`.
  __device__ static void AddFeedback(const uint8_t* metric, const Rows& rows, int kt, int block, Result& acc) {
    const uint4 high = Weights(metric, kt, block, 0), low = Weights(metric, kt, block, 1);
    uint2 levels[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) levels[n] = *reinterpret_cast<const uint2*>(rows.At(kt, n));
#pragma unroll
    for (int n = 0; n < 4; ++n) Multiply(high, levels[n].x, levels[n].y, acc[n]);
#pragma unroll
    for (int n = 0; n < 4; ++n) Multiply(low, levels[n].x, levels[n].y, acc[n]);
  }
  __device__ static int Fed(int channel, int token) { return token ^ ((channel & 3) << 3); }
  __device__ static void PutFeedback(int strip, const Result& acc, Shared& s) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(&s.scratch[strip][g + 8 * half][Fed(g, 8 * n + 2 * q)]) = make_float2(acc[n][2 * half], acc[n][2 * half + 1]);
    }
  }

  template <bool kMetric>
  __device__ static void CodeBlock(const uint8_t* metric, bool counts, int block, int token, int strip, float (&sums)[2], Shared& s) {
    const int lane = threadIdx.x & 31;
    float v[16], b[16];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 image = *FloatChunk(s, token, 4 * block + k);
      v[4 * k] = image.x;
      v[4 * k + 1] = image.y;
      v[4 * k + 2] = image.z;
      v[4 * k + 3] = image.w;
    }
#pragma unroll
    for (int c = 0; c < 16; ++c) b[c] = kMetric && block > 0 ? s.scratch[strip][c][Fed(c, lane)] : 0.f;
    const float* within = kMetric ? reinterpret_cast<const float*>(metric + Metric::kWithin) + block * 256 : nullptr;
    const float* pivots = kMetric ? reinterpret_cast<const float*>(metric + Metric::kPivots) + block * 16 : nullptr;
    constexpr uint32_t kNoCodes = 0u - kCodeMagicBits * 0x01010101u;  // what 4 biased codes, one a byte, add up to besides
    uint32_t codes[4] = {kNoCodes, kNoCodes, kNoCodes, kNoCodes}, levels[8];
    float even_level = 0;
#pragma unroll
    for (int c = 0; c < 16; ++c) {
      // (v - b + L/2) / L; what depends on the channel before is as short as it can be.
      const float biased = fmaf(SaturatedMultiplyAdd(b[c], -1.f / kMost, fmaf(v[c], 1.f / kMost, 0.5f)), kMost, kCodeMagic);
      const float level = (biased - kCodeMagic) - kMiddle;
      const float weighted = kMetric ? v[c] * Read(pivots + c) : v[c];
      sums[0] = fmaf(weighted, v[c], sums[0]);
      sums[1] = fmaf(weighted, level + b[c], sums[1]);
      codes[c / 4] += __float_as_uint(biased) << (8 * (c % 4));
      if (c % 2 == 0) {
        even_level = level;
      } else {
        levels[c / 2] = PackF16(even_level, level);
      }
      if (kMetric) {
#pragma unroll
        for (int k = (c + 1) / 4; k < 4; ++k) {
          const float4 w = Read(reinterpret_cast<const float4*>(within + c * 16 + 4 * k));  // 0 up to channel c
          const float weights[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (4 * k + e > c) b[4 * k + e] = fmaf(weights[e], level, b[4 * k + e]);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
      *Chunk(s, token, 4 * block + k) = make_uint4(levels[2 * k], levels[2 * k + 1], counts ? codes[k] : 0, 0);
  }

  // ---- 5
  __device__ static void Store(int strip, Shared& s, uint8_t* out) {
    const int tid = threadIdx.x;
    const float scale = kWhole ? s.scale[tid] : OfStrip(s.scale, tid / kStrip)[tid % kStrip];
    float largest = scale;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    if ((tid & 31) == 0) s.reduce[tid / 32] = largest;

    uint32_t* words = reinterpret_cast<uint32_t*>(out + Page::kKeyCodes);
    constexpr int kUnits = kDim / 32 * 128, kShare = kUnits / kSplit;  // tokens 16 apart of a word's four channels
    for (int unit = strip * kShare + tid; unit < (kWhole ? kUnits : (strip + 1) * kShare); unit += kThreads) {
      const int r = unit % 4, lane = unit / 4 % 32, kt = unit / 128;
      const int row = (lane >> 2) + 8 * (r & 1), chunk = 8 * kt + 4 * (r >> 1) + (lane & 3);
      uint32_t c[8];  // of tokens 16 i + row
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = 16 * (kWhole ? i : i % 2) + row;
        c[i] = OfStrip(reinterpret_cast<const uint4*>(s.tile[token]) + (chunk ^ Swizzle(token)), i / 2)->z;
      }
      uint32_t* to = words + kt * kBits * 128 + lane * 4 + r;
      if constexpr (kBits == 2) {
        to[0] = c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6;
        to[128] = c[4] | c[5] << 2 | c[6] << 4 | c[7] << 6;
      } else {  // packed_page.h
        constexpr uint32_t kLow = 0x01010101u, kHigh = 0x03030303u;
        to[0] = c[0] | c[1] << 3 | (c[6] >> 1 & kHigh) << 6;
        to[128] = c[2] | c[3] << 3 | (c[6] & kLow) << 6 | (c[7] & kLow) << 7;
        to[256] = c[4] | c[5] << 3 | (c[7] >> 1 & kHigh) << 6;
      }
    }
    __syncthreads();
    largest = fmaxf(fmaxf(s.reduce[0], s.reduce[1]), fmaxf(s.reduce[2], s.reduce[3]));
    const float base = largest > 0 ? ldexpf(1.f, ilogbf(largest)) : 0.f;
    const uint8_t stored = DeviceEncodeE3M5(scale, base);
    const int any_zero = __syncthreads_or(stored == 0);
    const int position = (tid % 8) * 16 + 2 * (tid / 16) + (tid % 16) / 8;  // VectorPosition
    if constexpr (kRankOne) {
      if (kWhole || tid / kStrip == strip) reinterpret_cast<uint16_t*>(out + Page::kMeanFactor)[position] = s.factor[tid % (kTokens / kSplit)];
    }
    if (!kWhole && strip != 0) return;
    out[Page::kTokenScale + position] = stored;
    for (int w = tid; w < kDim / 2; w += kThreads) {
      uint32_t word = 0;
      for (int e = 0; e < 4; ++e) {
        const int mean = s.stored_mean[w / 16 * 32 + 16 * (w % 4 / 2) + w / 4 % 4 * 4 + e];
        const int high = mean >> 8;
        const int byte = w % 2 == 0 ? high : mean - 256 * high - 128;
        word |= static_cast<uint32_t>(byte & 255) << (8 * e);
      }
      reinterpret_cast<uint32_t*>(out + Page::kMean)[w] = word;
    }
    if (tid == 0) {
      *reinterpret_cast<uint4*>(out + Page::kHeader) = make_uint4(__float_as_uint(base), __float_as_uint(s.reduce[4]), any_zero, 0);
    }
    for (int at = Page::kHeader + 16 + 4 * tid; at < Page::kBytes; at += 4 * kThreads) *reinterpret_cast<uint32_t*>(out + at) = 0;
  }
};

}  // namespace kvrazor::cuda
