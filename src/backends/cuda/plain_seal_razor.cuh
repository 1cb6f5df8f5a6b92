// Razor sides of plain pages (formulas: backends/cpu/seal_razor_key.cc, seal_razor_value.cc).
//
//   keys    1. means of the channels, a thread each           2. a token a warp: scale, codes by error feedback, gain
//           feedback runs to the right: once channel c has its error, every lane adds W_ci e_c to its channels i > c, so that a step is
//           three shuffles and no sum over lanes
//   values  1. norms, a token a warp    2. range and two regressions of a channel, a thread each    3. codes
#pragma once

#include "src/backends/cuda/plain_metric.h"
#include "src/backends/cuda/plain_seal_page.cuh"
#include "src/backends/cuda/small_floats.cuh"

namespace kvrazor::cuda {

template <int kDim>
struct PlainSealRazor {
  using Page = PlainSealPage<kDim>;
  using Job = typename Page::Job;
  using Shared = typename Page::Shared;
  static constexpr int kThreads = Page::kThreads, kWarps = Page::kWarps, kCount = Page::kCount;

  // ---- keys
  __device__ static void Keys(const Job& j, Shared& s) {
    Mean(j, s);
    const float* mean = s.base[0];
    float mean_square = 0;
    if (j.side.rank_one_mean) {
      for (int c = Page::Lane(); c < kDim; c += 32) mean_square = fmaf(mean[c], mean[c], mean_square);
      mean_square = SumOverWarp(mean_square);
    }
    for (int token = Page::Warp(); token < kTokens; token += kWarps) {
      float r[kCount];
      Page::LoadToken(j, token, r);
      SubtractMean(j, token, mean, mean_square, r);
      const float scale = IsExact(j.job, token) ? 0.f : BestScale(j.side.bits, r);
      const float gain = Codes(j, token, scale, r, s);
      if (Page::Lane() == 0) s.factor[token] = gain * scale;
    }
    __syncthreads();
    StoreScales(j, s);
  }

  // ---- values
  __device__ static void Values(const Job& j, Shared& s) {
    for (int token = Page::Warp(); token < kTokens; token += kWarps) {
      float y[kCount];
      Page::LoadToken(j, token, y);
      float sum = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) sum = fmaf(y[i], y[i], sum);
      const uint8_t norm = DeviceEncodeE5M3(sqrtf(SumOverWarp(sum)));  // 0 of an exact token
      if (Page::Lane() != 0) continue;
      j.out[j.side.at.norm_at + token] = norm;
      s.factor[token] = norm != 0 ? __fdiv_rn(1.f, DeviceDecodeE5M3(norm)) : 0.f;
    }
    __syncthreads();
    const int group_tokens = j.side.at.group_size > 0 ? j.side.at.group_size : kTokens;
    for (int first = 0; first < kTokens; first += group_tokens) {
      const Line line = FitGroup(j, first, first + group_tokens, s);
      if (threadIdx.x < kDim) StoreChannel(j, first / group_tokens * kDim + static_cast<int>(threadIdx.x), line, s);
      const auto most = static_cast<float>((1 << j.side.bits) - 1);
      OverStrips(j, first, first + group_tokens, s, [&](int token, int c, float u) {
        s.codes[token][c] = PlainCode(u, 0.f, s.inverse[0][c], s.shift[0][c], most);
      });
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kTokens * kDim; i += kThreads) {
      if (IsExact(j.job, i / kDim)) s.codes[i / kDim][i % kDim] = 0;
    }
  }

 private:
  /// fn(token, channel, value) for the tokens of [first, end) that count, by the thread of the channel, times their factors.
  template <class Fn>
  __device__ static void OverStrips(const Job& j, int first, int end, Shared& s, Fn fn, bool scaled = true) {
    const int c = threadIdx.x;
    for (int from = first; from < end; from += kSealStrip) {
      Page::LoadStrip(j, from, scaled, s);
      if (c >= kDim) continue;
      for (int t = 0; t < kSealStrip; ++t) {
        if (!IsExact(j.job, from + t)) fn(from + t, c, s.strip[t][c]);
      }
    }
  }
  __device__ static int CountTokens(const Job& j, int first, int end) {
    int count = 0;
    for (int t = first; t < end; ++t) count += !IsExact(j.job, t);
    return count;
  }

  /// Step 1 of keys: the stored mean in base[0], as f32.
  __device__ static void Mean(const Job& j, Shared& s) {
    const int c = threadIdx.x;
    float sum = 0;
    OverStrips(j, 0, kTokens, s, [&](int, int, float y) { sum += y; }, false);
    const int count = CountTokens(j, 0, kTokens);
    const float mean = count > 0 ? sum * (1.f / static_cast<float>(count)) : 0.f;
    float largest = fabsf(mean);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    if (Page::Lane() == 0) s.reduce[Page::Warp()] = largest;
    __syncthreads();
    largest = 0;
    for (const float x : s.reduce) largest = fmaxf(largest, x);
    const float scale = __fdiv_rn(largest, 32767.f);
    if (c < kDim) {
      const float steps = scale > 0 ? fminf(fmaxf(rintf(__fdiv_rn(mean, scale)), -32767.f), 32767.f) : 0.f;
      reinterpret_cast<int16_t*>(j.out + j.side.at.mean_at)[c] = static_cast<int16_t>(steps);
      s.base[0][c] = steps * scale;
    }
    if (c == 0) reinterpret_cast<float2*>(j.page + j.side.at.head_scalars_at)[j.head].x = scale;
    __syncthreads();
  }

  /// r = y - a mean.
  __device__ static void SubtractMean(const Job& j, int token, const float* mean, float mean_square, float (&r)[kCount]) {
    const float* own = mean + kCount * Page::Lane();
    float factor = 1;
    if (j.side.rank_one_mean) {
      float dot = 0;
#pragma unroll
      for (int i = 0; i < kCount; ++i) dot = fmaf(r[i], own[i], dot);
      factor = SumOverWarp(dot) * (mean_square > 0 ? __fdiv_rn(1.f, mean_square) : 0.f);
      const uint16_t stored = IsExact(j.job, token) || !isfinite(factor) ? 0 : SaturatedF16(factor + 0.f);
      factor = FromF16(stored);
      if (Page::Lane() == 0) reinterpret_cast<uint16_t*>(j.out + j.side.at.mean_factor_at)[token] = stored;
    }
#pragma unroll
    for (int i = 0; i < kCount; ++i) r[i] = fmaf(-factor, own[i], r[i]);
  }

  /// Step 2: of each clip and its two refits the scale that explains most.
  __device__ static float BestScale(int bits, const float (&r)[kCount]) {
    const auto most = static_cast<float>((1 << bits) - 1);
    float largest = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) largest = fmaxf(largest, fabsf(r[i]));
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    float best = 0, best_score = 0;
    const int clips = bits == 2 ? 5 : 3;
#pragma unroll 1
    for (int clip = 0; clip < clips; ++clip) {
      float scale = largest * ((1.f - 0.1f * static_cast<float>(clip)) * 2 / most);
#pragma unroll 1
      for (int round = 0; round < 2; ++round) {
        const float inverse = scale > 0 ? __fdiv_rn(1.f, scale) : 0.f;
        float a = 0, b = 0;
#pragma unroll
        for (int i = 0; i < kCount; ++i) {
          const float level = fminf(fmaxf(rintf(fmaf(r[i], inverse, 0.5f * most)), 0.f), most) - 0.5f * most;
          a = fmaf(r[i], level, a);
          b = fmaf(level, level, b);
        }
        a = SumOverWarp(a);
        scale = __fdiv_rn(a, SumOverWarp(b));  // levels are at least a half
        if (a * scale > best_score) {
          best_score = a * scale;
          best = scale;
        }
      }
    }
    return best;
  }

  /// Steps 3 and 4. Returns the gain.
  __device__ static float Codes(const Job& j, int token, float scale, const float (&r)[kCount], Shared& s) {
    const auto most = static_cast<float>((1 << j.side.bits) - 1);
    const float half = 0.5f * most, inverse = scale > 0 ? __fdiv_rn(1.f, scale) : 0.f;
    const float* weights = j.p.metric ? reinterpret_cast<const float*>(j.p.metric) + j.head * PlainMetricFloats(kDim) : nullptr;
    const float* pivots = weights + kDim * kDim;
    const int lane = Page::Lane();
    float fix[kCount] = {}, image[kCount] = {};  // sums over the channels before: W e, W r
    float numerator = 0, denominator = 0;
#pragma unroll 1
    for (int owner = 0; owner < 32; ++owner) {
#pragma unroll
      for (int i = 0; i < kCount; ++i) {
        const int c = kCount * owner + i;
        const float r_c = __shfl_sync(~0u, r[i], owner), fix_c = __shfl_sync(~0u, fix[i], owner), image_c = __shfl_sync(~0u, image[i], owner);
        const float code = fminf(fmaxf(rintf(fmaf(r_c + fix_c, inverse, half)), 0.f), most);
        const float error = fmaf(-scale, code - half, r_c);
        const float v = r_c + image_c, weighted = v * (weights ? __ldg(pivots + c) : 1.f);
        numerator = fmaf(weighted, v, numerator);
        denominator = fmaf(weighted, v - (error + fix_c), denominator);
        if (lane == owner) s.codes[token][c] = scale > 0 ? static_cast<uint8_t>(code) : 0;
        if (!weights) continue;
        const float* row = weights + c * kDim + kCount * lane;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const float w = kCount * lane + k > c ? __ldg(row + k) : 0.f;
          fix[k] = fmaf(w, error, fix[k]);
          image[k] = fmaf(w, r_c, image[k]);
        }
      }
    }
    constexpr float kLeastGain = 0.7f, kMostGain = 1.6f;
    return denominator > 0 ? fminf(fmaxf(__fdiv_rn(numerator, denominator), kLeastGain), kMostGain) : 1.f;
  }

  /// Step 5, from SharedPage::factor.
  __device__ static void StoreScales(const Job& j, Shared& s) {
    float largest = 0;
    for (int t = Page::Lane(); t < kTokens; t += 32) largest = fmaxf(largest, s.factor[t]);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    const float base = largest > 0 ? ldexpf(1.f, ilogbf(largest)) : 0.f;
    if (threadIdx.x < kTokens) j.out[j.side.at.scale_at + threadIdx.x] = DeviceEncodeE3M5(s.factor[threadIdx.x], base);
    if (threadIdx.x == 0) reinterpret_cast<float2*>(j.page + j.side.at.head_scalars_at)[j.head].y = base;
  }

  /// u = middle + scale * level.
  struct Line {
    float scale, middle = 0;
  };
  struct Fit {
    Line line;
    float inverse = 0, shift = 0, sum_l = 0, sum_ll = 0, sum_xl = 0;

    __device__ void Begin(float half) {
      inverse = line.scale > 0 ? __fdiv_rn(1.f, line.scale) : 0.f;
      shift = fmaf(-line.middle, inverse, half);
      sum_l = sum_ll = sum_xl = 0;
    }
    __device__ void Add(float x, float half) {
      const float level = fminf(fmaxf(rintf(fmaf(x, inverse, shift)), 0.f), 2 * half) - half;
      sum_l += level;
      sum_ll = fmaf(level, level, sum_ll);
      sum_xl = fmaf(x, level, sum_xl);
    }
    __device__ void Regress(float sum_x, float inverse_count, Line& best, float& best_score) {
      const float mean_l = sum_l * inverse_count;
      const float variance = fmaf(-sum_l, mean_l, sum_ll), covariance = fmaf(-sum_x, mean_l, sum_xl);
      if (!(variance > 0.25f && covariance > 0)) return;  // all codes equal, or falling
      line.scale = __fdiv_rn(covariance, variance);
      line.middle = fmaf(-line.scale, mean_l, sum_x * inverse_count);
      const float score = line.scale * covariance;
      if (score <= best_score) return;
      best_score = score;
      best = line;
    }
  };

  /// Step 2 of values, of this thread's channel over the tokens of a group.
  __device__ static Line FitGroup(const Job& j, int first, int end, Shared& s) {
    constexpr float kLargest = 3.402823466e38f;
    const auto most = static_cast<float>((1 << j.side.bits) - 1);
    const float half = 0.5f * most;
    const int count = CountTokens(j, first, end);
    float low = kLargest, high = -kLargest;
    OverStrips(j, first, end, s, [&](int, int, float u) {
      low = fminf(low, u);
      high = fmaxf(high, u);
    });
    if (count == 0) low = high = 0;
    const float mid = (high + low) * 0.5f, span = (high - low) * (1.f / most);
    const float inverse_count = count > 0 ? 1.f / static_cast<float>(count) : 0.f;
    Fit wide{{span}}, narrow{{span * 0.9f}};
    Line best{span};
    float best_score = 0;
    for (int round = 0; round < 2; ++round) {
      wide.Begin(half);
      narrow.Begin(half);
      float sum_x = 0;
      OverStrips(j, first, end, s, [&](int, int, float u) {
        sum_x += u - mid;
        wide.Add(u - mid, half);
        narrow.Add(u - mid, half);
      });
      wide.Regress(sum_x, inverse_count, best, best_score);
      narrow.Regress(sum_x, inverse_count, best, best_score);
    }
    best.middle += mid;
    return best;
  }

  /// Step 3: the stored parameters, and what codes are computed from.
  __device__ static void StoreChannel(const Job& j, int at, Line line, Shared& s) {
    constexpr float kReach = 14, kCentreSteps = 8;
    const int c = threadIdx.x;
    const float least = fabsf(line.middle) / kReach;  // the centre is stored in eighths of the scale, up to 127
    if (line.scale < least) {
      line.scale = least;
      line.middle += least / 2;
    }
    const uint8_t stored = DeviceEncodeE5M3(line.scale);
    const float scale = DeviceDecodeE5M3(stored), inverse = scale > 0 ? __fdiv_rn(1.f, scale) : 0.f;
    const float centre = fminf(fmaxf(rintf(kCentreSteps * line.middle * inverse), -127.f), 127.f);
    j.out[j.side.at.scale_at + at] = stored;
    reinterpret_cast<int8_t*>(j.out)[j.side.at.centre_at + at] = static_cast<int8_t>(centre);
    s.inverse[0][c] = inverse;
    s.shift[0][c] = scale > 0 ? 0.5f * static_cast<float>((1 << j.side.bits) - 1) - centre / kCentreSteps : 0.f;
  }
};

}  // namespace kvrazor::cuda
