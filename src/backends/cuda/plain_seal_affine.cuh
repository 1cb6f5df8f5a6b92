// Affine and codebook sides of plain pages (formulas: backends/cpu/seal_affine.cc, seal_codebook.cc):
//
//   affine per channel  pass 1: ranges of the groups of tokens > parameters     pass 2: codes
//   affine per token, codebook                                                  one pass, a token a warp
#pragma once

#include "src/backends/cuda/plain_seal_page.cuh"

namespace kvrazor::cuda {

/// What codes of a group are computed from: code = clamp(rne((x - base) * inverse + shift), 0, L).
struct PlainCoder {
  float base, inverse, shift;
  uint16_t scale, offset;  // stored

  /// Steps 3 and 4 of seal_affine.cc. low > high: no token of the group counts.
  __device__ PlainCoder(const PlainSide& side, float low, float high) {
    if (!(low <= high)) low = high = 0;
    const float least = low;  // before clipping
    const auto most = static_cast<float>((1 << side.bits) - 1);
    float s, zero = 0;
    if (side.zero_point == ZeroPoint::kSymmetric) {
      const auto levels = static_cast<float>((1 << (side.bits - 1)) - 1);
      s = __fdiv_rn(side.clip * fmaxf(fabsf(low), fabsf(high)), levels);
      low = 0;
      zero = levels + 1;
    } else {
      if (side.zero_point == ZeroPoint::kRoundedWithZero) {
        low = fminf(low, 0.f);
        high = fmaxf(high, 0.f);
      }
      if (side.clip != 1) {
        low *= side.clip;
        high *= side.clip;
      }
      s = __fdiv_rn(high - low, most) + 0.f;  // no -0
      zero = s > 0 ? rintf(__fdiv_rn(-low, s)) : 0.f;
    }
    scale = SaturatedF16(s);
    base = least;
    inverse = shift = 0;
    float stored_offset = least;
    if (scale != 0) {
      if (side.zero_point == ZeroPoint::kFloatMin) {
        base = FromF16(SaturatedF16(least));
        inverse = __fdiv_rn(1.f, FromF16(scale));
      } else {
        base = low;
        inverse = __fdiv_rn(1.f, s);
        shift = fmaf(zero, s, low) * inverse;
        stored_offset = __fmul_rn(-zero, s);
      }
    }
    offset = SaturatedF16(stored_offset + 0.f);
  }
};

template <int kDim>
struct PlainSealAffine {
  using Page = PlainSealPage<kDim>;
  using Job = typename Page::Job;
  using Shared = typename Page::Shared;
  static constexpr int kThreads = Page::kThreads, kWarps = Page::kWarps, kCount = Page::kCount;

  __device__ static void Affine(const Job& j, Shared& s) {
    if (j.side.at.token_scale_at >= 0) TokenFactors(j, s);
    if (j.side.per_channel) {
      ChannelRanges(j, s);
      ChannelParameters(j, s);
      ChannelCodes(j, s);
    } else {
      for (int token = Page::Warp(); token < kTokens; token += kWarps) AffineToken(j, token, s);
    }
  }
  __device__ static void Codebook(const Job& j, Shared& s) {
    for (int token = Page::Warp(); token < kTokens; token += kWarps) CodebookToken(j, token, s);
  }

 private:
  /// Norms over all kv heads: every CTA reads all of them, the first head's writes them.
  __device__ static void TokenFactors(const Job& j, Shared& s) {
    for (int token = Page::Warp(); token < kTokens; token += kWarps) {
      float sum = 0;
      for (int h = 0; h < j.p.num_kv_heads; ++h) {
        float x[kCount];
        LoadLane(MakeRowSource<kDim>(j.p.rows, j.job, j.p.num_kv_heads, h, 0), token, x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) sum = fmaf(x[i], x[i], sum);
      }
      const uint16_t norm = IsExact(j.job, token) ? 0 : SaturatedF16(sqrtf(SumOverWarp(sum)));
      const uint16_t stored = norm != 0 ? norm : 0x3c00;  // 1
      if (Page::Lane() != 0) continue;
      s.factor[token] = __fdiv_rn(1.f, FromF16(stored));
      if (j.head == 0) reinterpret_cast<uint16_t*>(j.page + j.side.at.token_scale_at)[token] = stored;
    }
    __syncthreads();
  }


  // ---- affine, groups of tokens of a channel
  __device__ static void ChannelRanges(const Job& j, Shared& s) {
    constexpr float kLargest = 3.402823466e38f;
    const int c = threadIdx.x;
    float low = kLargest, high = -kLargest;
    for (int first = 0; first < kTokens; first += kSealStrip) {
      Page::LoadStrip(j, first, j.side.at.token_scale_at >= 0, s);
      if (c >= kDim) continue;
      for (int t = 0; t < kSealStrip; ++t) {
        if (IsExact(j.job, first + t)) continue;
        low = fminf(low, s.strip[t][c]);
        high = fmaxf(high, s.strip[t][c]);
      }
      if ((first + kSealStrip) % j.side.at.group_size != 0) continue;
      const int group = first / j.side.at.group_size;
      s.base[group][c] = low;
      s.inverse[group][c] = high;
      low = kLargest;
      high = -kLargest;
    }
    __syncthreads();
  }
  __device__ static void ChannelParameters(const Job& j, Shared& s) {
    for (int i = threadIdx.x; i < kTokens / j.side.at.group_size * kDim; i += kThreads) {
      const int group = i / kDim, c = i % kDim;
      const PlainCoder coder(j.side, s.base[group][c], s.inverse[group][c]);
      s.base[group][c] = coder.base;
      s.inverse[group][c] = coder.inverse;
      s.shift[group][c] = coder.shift;
      reinterpret_cast<uint16_t*>(j.out + j.side.at.scale_at)[i] = coder.scale;
      reinterpret_cast<uint16_t*>(j.out + j.side.at.offset_at)[i] = coder.offset;
    }
  }
  __device__ static void ChannelCodes(const Job& j, Shared& s) {
    const auto most = static_cast<float>((1 << j.side.bits) - 1);
    for (int first = 0; first < kTokens; first += kSealStrip) {
      Page::LoadStrip(j, first, j.side.at.token_scale_at >= 0, s);
      const int group = first / j.side.at.group_size;
      for (int i = threadIdx.x; i < kSealStrip * kDim; i += kThreads) {
        const int t = i / kDim, c = i % kDim;
        s.codes[first + t][c] =
            IsExact(j.job, first + t) ? 0 : PlainCode(s.strip[t][c], s.base[group][c], s.inverse[group][c], s.shift[group][c], most);
      }
    }
  }

  // ---- a token by itself, by one warp
  __device__ static void AffineToken(const Job& j, int token, Shared& s) {
    float x[kCount];
    Page::LoadToken(j, token, x);
    const float factor = j.side.at.token_scale_at >= 0 ? s.factor[token] : 1.f;
    float low = x[0] * factor, high = low;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      x[i] *= factor;
      low = fminf(low, x[i]);
      high = fmaxf(high, x[i]);
    }
    const int lanes = j.side.at.group_size / kCount;  // of a group
    for (int mask = 1; mask < lanes; mask *= 2) {
      low = fminf(low, __shfl_xor_sync(~0u, low, mask));
      high = fmaxf(high, __shfl_xor_sync(~0u, high, mask));
    }
    const PlainCoder coder(j.side, low, high);  // of an exact token: 0
    if (Page::Lane() % lanes == 0) {
      const int at = Page::Lane() / lanes * kTokens + token;
      reinterpret_cast<uint16_t*>(j.out + j.side.at.scale_at)[at] = coder.scale;
      reinterpret_cast<uint16_t*>(j.out + j.side.at.offset_at)[at] = coder.offset;
    }
    const auto most = static_cast<float>((1 << j.side.bits) - 1);
    const bool exact = IsExact(j.job, token);
#pragma unroll
    for (int i = 0; i < kCount; ++i)
      s.codes[token][kCount * Page::Lane() + i] = exact ? 0 : PlainCode(x[i], coder.base, coder.inverse, coder.shift, most);
  }

  __device__ static void CodebookToken(const Job& j, int token, Shared& s) {
    float x[kCount];
    Page::LoadToken(j, token, x);
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) sum = fmaf(x[i], x[i], sum);
    const float norm = sqrtf(SumOverWarp(sum));
    const float factor = norm > 0 ? __fdiv_rn(__fdiv_rn(sqrtf(static_cast<float>(kDim)), j.side.step), norm) : 0.f;
    uint32_t codes[kCount];
    sum = 0;
#pragma unroll
    for (int i = 0; i < kCount; ++i) {
      const float u = x[i] * factor;
      codes[i] = 0;
      for (int k = 0; k + 1 < 1 << j.side.bits; ++k) codes[i] += u >= s.threshold[k];
      const float level = s.level[codes[i]];
      sum = fmaf(level, level, sum);
    }
    const uint16_t stored = norm > 0 ? SaturatedF16(__fdiv_rn(norm, sqrtf(SumOverWarp(sum)))) : 0;
    if (Page::Lane() == 0) reinterpret_cast<uint16_t*>(j.out + j.side.at.norm_at)[token] = stored;
#pragma unroll
    for (int i = 0; i < kCount; ++i) s.codes[token][kCount * Page::Lane() + i] = stored != 0 ? codes[i] : 0;
  }
};

}  // namespace kvrazor::cuda
