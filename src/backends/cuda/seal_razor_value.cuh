// Seals the values of one head of a page with razor (formulas: backends/cpu/seal_razor_value.cc), 128 threads, u in shared memory. A quarter is
// 32 tokens, the four of a channel are merged as (0, 1), (2, 3), or with kGroups = 4 have parameters of their own.
//
//   1. rows -> y, rotated (seal_tile.cuh); norm -> e5m3; u = y / norm
//   2. columns: range, two regressions for each of two clips
//   3. columns: codes of 4 tokens in a word, in place of them; words of the page: 4 channels 16 apart side by side
//
// kSplit = 1: a CTA seals a page, a thread a channel (throughput). kSplit = 4: a CTA rotates all rows but keeps 32 channels, those with one value of
// (c / 64, c / 8 % 2), whose codes fill words; a thread has a quarter of a channel (time of one page). The same sums in the same order.
#pragma once

#include <type_traits>

#include "src/backends/cuda/seal_quarters.cuh"
#include "src/backends/cuda/seal_tile.cuh"
#include "src/backends/cuda/small_floats.cuh"

namespace kvrazor::cuda {

template <class PackedPage, int kDim, int kGroups, int kSplit>
struct RazorValueSeal {
  using Page = PackedPage;
  using Tile = RowTile16<kDim>;
  static constexpr int kThreads = 128;
  static constexpr int kQuarter = 32;  // tokens
  static constexpr bool kWhole = kSplit == 1;
  static constexpr int kChannels = kWhole ? kDim : 32;  // of a CTA
  static constexpr int kMaxSums = 7;                    // of a channel by quarters
  static_assert(kWhole || kSplit == 4);

  struct Shared {
    uint32_t tile[kTokens][kChannels];  // channel x of token t at x ^ Swizzle(t)
    std::conditional_t<kWhole, OneThread, QuarterSums<kMaxSums>> quarters;
  };

  __device__ static void Begin(const SealParams&, int, Shared&) {}
  /// share: which channels, 0 with kSplit = 1.
  __device__ static void Run(const SealParams& p, const SealJob& job, int head, int share, uint8_t* out, Shared& s) {
    if (!kWhole && share >= kDim / 32) return;
    Load(p, job, head, share, out, s);
    __syncthreads();
    if (!kWhole || threadIdx.x < kDim) {
      if (AnyExact(job)) {
        Channel<true>(job, share, out, s);
      } else {
        Channel<false>(job, share, out, s);
      }
    }
    __syncthreads();
    uint32_t* words = reinterpret_cast<uint32_t*>(out + Page::kValueCodes);
    for (int i = threadIdx.x; i < kTokens * kChannels / 16; i += kThreads) {
      // Word [4 kt][D/64 dg][32 lanes][4 r]; a share has the words of one dg and r & 1.
      const int w = kWhole ? i : (i / 64 * (kDim / 64) + share / 2) * 128 + i % 64 / 2 * 4 + i % 2 * 2 + share % 2;
      const int r = w % 4, lane = w / 4 % 32, dg = w / 128 % (kDim / 64), kt = w / 128 / (kDim / 64);
      const int token = 32 * kt + 16 * (r >> 1) + 2 * (lane & 3);
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) word |= s.tile[token][(kWhole ? 64 * dg + 16 * j + 8 * (r & 1) + (lane >> 2) : 8 * j + (lane >> 2)) ^ Swizzle(token)] << (2 * j);
      words[w] = word;
    }
  }

 private:
  __device__ static int Swizzle(int token) { return (token & 3) << 3; }

  __device__ static void Load(const SealParams& p, const SealJob& job, int head, int share, uint8_t* out, Shared& s) {
    const RowSource rows = MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, 1);
    const float rotation = RotationFactor<kDim>(p.rotate);
    const int g = (threadIdx.x & 31) >> 2, q = threadIdx.x & 3;
#pragma unroll 1
    for (int tile = static_cast<int>(threadIdx.x / 32); tile < kTokens / 16; tile += kThreads / 32) {
      const int token[2] = {16 * tile + g, 16 * tile + g + 8};
      typename Tile::Raw raw;
      Tile::Load(rows, token, raw);
      float x[2][Tile::kValues];
      Tile::template Rotate<false>(p.rotate, raw, x);
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        float sum = 0;
#pragma unroll
        for (int k = 0; k < Tile::kValues; ++k) {
          x[n][k] *= rotation;
          sum = fmaf(x[n][k], x[n][k], sum);
        }
        sum += __shfl_xor_sync(~0u, sum, 1);
        sum += __shfl_xor_sync(~0u, sum, 2);
        const uint8_t norm = IsExact(job, token[n]) ? 0 : DeviceEncodeE5M3(sqrtf(sum));
        if (q == 0 && share == 0) out[Page::kNorm + (token[n] % 8) * 16 + 2 * (token[n] / 16) + (token[n] % 16) / 8] = norm;  // VectorPosition
        const float inverse = norm != 0 ? __fdiv_rn(1.f, DeviceDecodeE5M3(norm)) : 0.f;
#pragma unroll
        for (int k = 0; k < Tile::kValues; k += 2) {
          // Channels 16 (k / 4) + 8 (k / 2 % 2) + 2 q + {0, 1}.
          if (!kWhole && (k / 16 != share / 2 || k / 2 % 2 != share % 2)) continue;
          const int channel = kWhole ? Tile::ChannelOf(k, q) : 8 * (k / 4 % 4) + 2 * q;
          *reinterpret_cast<float2*>(&s.tile[token[n]][channel ^ Swizzle(token[n])]) = make_float2(x[n][k] * inverse, x[n][k + 1] * inverse);
        }
      }
    }
  }

  /// A line through u: code q has the value middle + scale (q - 3/2).
  struct Clip {
    float scale, middle = 0;
    float inverse = 0, shift = 0;  // a third of what their names say

    __device__ void Begin() {
      inverse = scale > 0 ? __fdiv_rn(1.f / 3, scale) : 0.f;
      shift = fmaf(-middle, inverse, 0.5f);
    }
    /// sums: of q, q^2, x q
    __device__ void Add(float x, float* sums) const {
      const float q = CodeValue<2>(SaturatedMultiplyAdd(x, inverse, shift));
      sums[0] += q;
      sums[1] = fmaf(q, q, sums[1]);
      sums[2] = fmaf(x, q, sums[2]);
    }
  };
  struct Best {
    float score = 0, scale, middle = 0;
  };
  __device__ static void Regress(float sum_x, float inverse_count, const float* sums, Clip& clip, Best& best) {
    const float mean_q = sums[0] * inverse_count;
    const float variance = fmaf(-sums[0], mean_q, sums[1]);
    const float covariance = fmaf(-sum_x, mean_q, sums[2]);
    if (!(variance > 0.25f && covariance > 0)) return;  // all codes equal, or falling
    clip.scale = __fdiv_rn(covariance, variance);
    clip.middle = fmaf(clip.scale, 1.5f - mean_q, sum_x * inverse_count);
    const float score = clip.scale * covariance;
    if (score > best.score) best = {score, clip.scale, clip.middle};
  }

  template <bool kAnyExact>
  __device__ static void Channel(const SealJob& job, int share, uint8_t* out, Shared& s) {
    const int x = kWhole ? static_cast<int>(threadIdx.x) : static_cast<int>(threadIdx.x & 31);  // column
    const int channel = kWhole ? x : 64 * (share / 2) + 16 * (x / 8) + 8 * (share % 2) + x % 8;
    const int own = kWhole ? 0 : static_cast<int>(threadIdx.x / 32);
    if constexpr (kGroups == 1) {
      Group<kAnyExact, 4>(job, x, channel, 0, own, out, s);
    } else {
#pragma unroll 1
      for (int quarter = own; quarter < (kWhole ? 4 : own + 1); ++quarter) Group<kAnyExact, 1>(job, x, channel, quarter, own, out, s);
    }
  }

  /// kQuarters: of the group, 4 or 1; from the quarter `first` on.
  template <bool kAnyExact, int kQuarters>
  __device__ static void Group(const SealJob& job, int x, int channel, int first, int own, uint8_t* out, Shared& s) {
    constexpr float kReach = 14, kCentreSteps = 8, kLargest = 3.402823466e38f;
    const auto counts = [&](int t) { return !kAnyExact || !IsExact(job, t); };
    const auto u = [&](int t) { return __uint_as_float(s.tile[t][x ^ Swizzle(t)]); };
    const auto sum_up = [&]<int kCount>(int turn, float (&total)[kCount], auto part, auto merge) {
      if constexpr (kQuarters == 4) {
        OverQuarters(s.quarters, turn, total, part, merge);
      } else {
        for (float& x : total) x = 0;
        part(first, total);
      }
    };
    const auto over_tokens = [&](int quarter, auto fn) {
#pragma unroll 8
      for (int t = kQuarter * quarter; t < kQuarter * (quarter + 1); ++t) {
        if (counts(t)) fn(u(t));
      }
    };
    int count = kTokens / 4 * kQuarters;
    if constexpr (kAnyExact) {
      count -= kQuarters == 1 ? __popc(first < 2 ? first == 0 ? job.exact[0] : job.exact[1] : first == 2 ? job.exact[2] : job.exact[3])
                              : __popc(job.exact[0]) + __popc(job.exact[1]) + __popc(job.exact[2]) + __popc(job.exact[3]);
    }
    float range[2];
    sum_up(0, range, [&](int quarter, float (&to)[2]) {
      to[0] = kLargest;
      to[1] = -kLargest;
      over_tokens(quarter, [&](float y) {
        to[0] = fminf(to[0], y);
        to[1] = fmaxf(to[1], y);
      });
    }, [](float (&to)[2], const float (&from)[2]) {
      to[0] = fminf(to[0], from[0]);
      to[1] = fmaxf(to[1], from[1]);
    });
    if (count == 0) range[0] = range[1] = 0;
    const float mid = (range[1] + range[0]) * 0.5f, span = (range[1] - range[0]) * (1.f / 3);
    const float inverse_count = count > 0 ? 1.f / static_cast<float>(count) : 0.f;
    Clip wide{span}, narrow{span * 0.9f};
    Best best{0, span, 0};
    const auto add = []<int kCount>(float (&to)[kCount], const float (&from)[kCount]) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) to[i] += from[i];
    };
    wide.Begin();
    narrow.Begin();
    float sums[7];  // wide, narrow, x
    sum_up(1, sums, [&](int quarter, float (&to)[7]) {
      over_tokens(quarter, [&](float y) {
        y -= mid;
        to[6] += y;
        wide.Add(y, &to[0]);
        narrow.Add(y, &to[3]);
      });
    }, add);
    const float sum_x = sums[6];
    Regress(sum_x, inverse_count, &sums[0], wide, best);
    Regress(sum_x, inverse_count, &sums[3], narrow, best);
    wide.Begin();
    narrow.Begin();
    float again[6];
    sum_up(0, again, [&](int quarter, float (&to)[6]) {
      over_tokens(quarter, [&](float y) {
        y -= mid;
        wide.Add(y, &to[0]);
        narrow.Add(y, &to[3]);
      });
    }, add);
    Regress(sum_x, inverse_count, &again[0], wide, best);
    Regress(sum_x, inverse_count, &again[3], narrow, best);

    float scale = best.scale, middle = mid + best.middle;
    const float least = fabsf(middle) / kReach;  // the centre is stored in eighths of the scale, up to 127
    if (scale < least) {
      scale = least;
      middle += least / 2;
    }
    const uint8_t stored = DeviceEncodeE5M3(scale);
    const float stored_scale = DeviceDecodeE5M3(stored);
    const float inverse = stored_scale > 0 ? __fdiv_rn(1.f, stored_scale) : 0.f;
    const float centre = fminf(fmaxf(rintf(kCentreSteps * middle * inverse), -127.f), 127.f);
    const float third = inverse * (1.f / 3);
    const float shift = stored_scale > 0 ? (1.5f - centre / kCentreSteps) * (1.f / 3) : 0.f;
    if (kQuarters == 1 || own == 0) {
      const int at = first * kDim + (channel % 8) * (kDim / 8) + 2 * (channel / 16) + (channel % 16) / 8;  // VectorPosition
      out[Page::kChannelScale + at] = stored;
      out[Page::kCentre + at] = static_cast<uint8_t>(static_cast<int>(centre) & 255) ^ 128u;
    }
    // Byte e of a word: token from + 2 q + (e >> 1) + 8 (e & 1). A thread codes its own quarter, or all that the group has.
    const int begin = kQuarters == 1 ? kQuarter * first : kWhole ? 0 : kQuarter * own;
    const int end = begin + (kQuarters == 4 && kWhole ? kTokens : kQuarter);
#pragma unroll 1
    for (int from = begin; from < end; from += 16) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        uint32_t word = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int t = from + 2 * q + (e >> 1) + 8 * (e & 1);
          const uint32_t code = BiasedCode<2>(SaturatedMultiplyAdd(u(t), third, shift)) & 3u;
          if (counts(t)) word |= code << (8 * e);
        }
        s.tile[from + 2 * q][x ^ Swizzle(from + 2 * q)] = word;
      }
    }
  }
};

}  // namespace kvrazor::cuda
