// Seals a page with Codec::kRazorKey: page mean, one scale for each token and head, codes by error feedback in the metric of
// the queries seen so far, unbiased gain.
//
// Exact formulas for one head, in this order (L = 2^bits - 1, level of a code l = code - L/2, rne rounds halves to even):
//   1. y_t = H k_t; mean over the tokens that are not exact; mean_scale = max|mean| / 32767 (f32),
//      stored mean_c = rne(mean_c / mean_scale) as int16 (0 if mean_scale is 0); r_t = y_t - a_t stored mean.
//      a_t = 1; with rank_one_mean a_t = f16(<y_t, m> / <m, m>), m the stored mean (0 if <m, m> is 0), and stored.
//   2. Scale: for c in 1, .9, .8, .7, .6 (more than 2 bits: 1, .9, .8): s = 2 c max|r| / L, then twice { l = level of
//      clamp(rne(r / s + L/2), 0, L); a = <r, l>; b = <l, l>; s = a / b }. The s = a / b with the largest a^2 / b (lowest
//      squared error) is s_t, in f32; r = 0 gives s_t = 0 and codes 0.
//   3. Codes: A = M D / tr M + 0.2 I (query_metric-inl.h), w, d its factor. For c = 0 .. D-1:
//      x = r_c + sum_{i<c} w_ci e_i, code_c = clamp(rne(x / s_t + L/2), 0, L), e_c = r_c - s_t l_c.
//      Without queries w = 0, d = 1.
//   4. Gain: g = (r^T A r) / (r^T A r^), r^ = s_t l, clamped to [0.7, 1.6] (1 where the denominator is not > 0). With
//      v_c = r_c + sum_{i<c} w_ci r_i the numerator is sum d_c v_c^2 and the denominator sum d_c v_c (v_c - (x_c - s_t l_c)).
//   5. s'_t = g s_t; base = 2^floor(log2(max s')) over the page and head (0 if all are 0); stored EncodeE3M5(s'_t, base).
//   6. Exact tokens: a = 0, s' = 0, codes 0. They take part in no statistic.
//
// Order of work: rows [128][D] -> mean -> tiles [8][D][16] -> for each tile, lanes = tokens: scale search (two passes over the
// tile, five clips at once), then channels in blocks of 4: 8 accumulators in registers, each w broadcast serves e and r.
// Multiply-adds: D^2 a token for 3 and 4 together, D^3/3 a head for the factor. D = 64: 16 KB f16 in, 2304 bytes out.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/backends/cpu/scratch.h"
#include "src/backends/cpu/seal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/seal_razor_key.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "src/backends/cpu/codes-inl.h"
#include "src/backends/cpu/head_tile-inl.h"
#include "src/backends/cpu/query_metric-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr int kClips = 5;
constexpr float kClip[kClips] = {1.0f, 0.9f, 0.8f, 0.7f, 0.6f};
constexpr float kMinGain = 0.7f;
constexpr float kMaxGain = 1.6f;

/// Step 1: stored mean of a head and its f32 value.
///   rows [128][n], exact tokens are rows of 0
HWY_INLINE void PageMean(const float* HWY_RESTRICT rows, size_t n, int num_tokens, int16_t* HWY_RESTRICT stored,
                         float* HWY_RESTRICT mean_scale, float* HWY_RESTRICT mean) {
  const TagF32 d;
  const auto inverse_count = hn::Set(d, num_tokens > 0 ? 1.0f / static_cast<float>(num_tokens) : 0.0f);
  auto largest = hn::Zero(d);
  for (size_t c = 0; c < n; c += hn::Lanes(d)) {
    auto sum0 = hn::Zero(d);
    auto sum1 = hn::Zero(d);
    for (size_t t = 0; t < kPageTokens; t += 2) {
      sum0 = hn::Add(sum0, hn::Load(d, rows + t * n + c));
      sum1 = hn::Add(sum1, hn::Load(d, rows + (t + 1) * n + c));
    }
    const auto m = hn::Mul(hn::Add(sum0, sum1), inverse_count);
    largest = hn::Max(largest, hn::Abs(m));
    hn::Store(m, d, mean + c);
  }
  const float scale = hn::GetLane(hn::MaxOfLanes(d, largest)) / 32767.0f;
  *mean_scale = scale;
  for (size_t c = 0; c < n; ++c) {
    const float q = scale > 0 ? std::clamp(std::nearbyint(mean[c] / scale), -32767.0f, 32767.0f) : 0.0f;
    stored[c] = static_cast<int16_t>(q);
    mean[c] = q * scale;
  }
}

/// Step 1 with rank_one_mean: a of 16 tokens.
///   tile [n][16];  stored, factors [16]
HWY_INLINE void MeanFactors(const float* HWY_RESTRICT tile, size_t n, const float* HWY_RESTRICT mean,
                            const int32_t* HWY_RESTRICT keep, f16_bits* HWY_RESTRICT stored,
                            float* HWY_RESTRICT factors) {
  const TagF32 d;
  float square = 0;
  for (size_t c = 0; c < n; ++c) square += mean[c] * mean[c];
  const float inverse = square > 0 ? 1.0f / square : 0.0f;
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    auto dot = hn::Zero(d);
    for (size_t c = 0; c < n; ++c) dot = hn::MulAdd(hn::Load(d, tile + c * 16 + lane), hn::Set(d, mean[c]), dot);
    hn::Store(dot, d, factors + lane);
  }
  for (size_t i = 0; i < 16; ++i) {
    const float factor = factors[i] * inverse;
    const bool valid = keep[i] != 0 && std::isfinite(factor);
    stored[i] = F16FromF32(valid ? std::clamp(factor, -65504.0f, 65504.0f) + 0.0f : 0.0f);
    factors[i] = F32FromF16(stored[i]);
  }
}

/// r = y - a mean in place; sum and maximum of |r| of each token.
///   tile [n][16], factors, sums, largest [16]
HWY_INLINE void SubtractMean(float* HWY_RESTRICT tile, size_t n, const float* HWY_RESTRICT mean,
                             const float* HWY_RESTRICT factors, float* HWY_RESTRICT sums, float* HWY_RESTRICT largest) {
  const TagF32 d;
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const auto factor = hn::Load(d, factors + lane);
    auto sum = hn::Zero(d);
    auto mx = hn::Zero(d);
    for (size_t c = 0; c < n; ++c) {
      const auto r = hn::NegMulAdd(factor, hn::Set(d, mean[c]), hn::Load(d, tile + c * 16 + lane));
      hn::Store(r, d, tile + c * 16 + lane);
      sum = hn::Add(sum, hn::Abs(r));
      mx = hn::Max(mx, hn::Abs(r));
    }
    hn::Store(sum, d, sums + lane);
    hn::Store(mx, d, largest + lane);
  }
}

/// The best scale so far of `lanes` tokens.
struct Best {
  float* score;  // a^2 / b
  float* scale;
};

/// One candidate: its refitted scale, kept if it scores best; returns it for the next round.
HWY_INLINE hn::Vec<TagF32> Refit(hn::Vec<TagF32> a, hn::Vec<TagF32> b, const Best& best) {
  const TagF32 d;
  const auto scale = hn::Div(a, b);  // b >= n / 4
  const auto score = hn::Mul(a, scale);
  const auto old = hn::Load(d, best.score);
  const auto better = hn::Gt(score, old);
  hn::Store(hn::IfThenElse(better, score, old), d, best.score);
  hn::Store(hn::IfThenElse(better, scale, hn::Load(d, best.scale)), d, best.scale);
  return scale;
}

/// Step 2 with 2 bits: |l| is 3/2 where |r| > s, else 1/2, so a = sum|r| / 2 + sum of the |r| above s.
HWY_INLINE void SearchScale2(const float* HWY_RESTRICT r, size_t n, hn::Vec<TagF32> sum, hn::Vec<TagF32> largest,
                             const Best& best) {
  const TagF32 d;
  const auto one = hn::Set(d, 1.0f);
  const auto two = hn::Set(d, 2.0f);
  const auto half_sum = hn::Mul(sum, hn::Set(d, 0.5f));
  const auto quarter = hn::Set(d, 0.25f * static_cast<float>(n));
  auto s0 = hn::Mul(largest, hn::Set(d, kClip[0] * 2 / 3));
  auto s1 = hn::Mul(largest, hn::Set(d, kClip[1] * 2 / 3));
  auto s2 = hn::Mul(largest, hn::Set(d, kClip[2] * 2 / 3));
  auto s3 = hn::Mul(largest, hn::Set(d, kClip[3] * 2 / 3));
  auto s4 = hn::Mul(largest, hn::Set(d, kClip[4] * 2 / 3));
  for (int round = 0; round < 2; ++round) {
    auto above0 = hn::Zero(d), above1 = hn::Zero(d), above2 = hn::Zero(d), above3 = hn::Zero(d), above4 = hn::Zero(d);
    auto count0 = hn::Zero(d), count1 = hn::Zero(d), count2 = hn::Zero(d), count3 = hn::Zero(d), count4 = hn::Zero(d);
    for (size_t c = 0; c < n; ++c) {
      const auto x = hn::Abs(hn::Load(d, r + c * 16));
      const auto is0 = hn::Gt(x, s0);
      const auto is1 = hn::Gt(x, s1);
      const auto is2 = hn::Gt(x, s2);
      const auto is3 = hn::Gt(x, s3);
      const auto is4 = hn::Gt(x, s4);
      above0 = hn::Add(above0, hn::IfThenElseZero(is0, x));
      above1 = hn::Add(above1, hn::IfThenElseZero(is1, x));
      above2 = hn::Add(above2, hn::IfThenElseZero(is2, x));
      above3 = hn::Add(above3, hn::IfThenElseZero(is3, x));
      above4 = hn::Add(above4, hn::IfThenElseZero(is4, x));
      count0 = hn::Add(count0, hn::IfThenElseZero(is0, one));
      count1 = hn::Add(count1, hn::IfThenElseZero(is1, one));
      count2 = hn::Add(count2, hn::IfThenElseZero(is2, one));
      count3 = hn::Add(count3, hn::IfThenElseZero(is3, one));
      count4 = hn::Add(count4, hn::IfThenElseZero(is4, one));
    }
    s0 = Refit(hn::Add(half_sum, above0), hn::MulAdd(count0, two, quarter), best);
    s1 = Refit(hn::Add(half_sum, above1), hn::MulAdd(count1, two, quarter), best);
    s2 = Refit(hn::Add(half_sum, above2), hn::MulAdd(count2, two, quarter), best);
    s3 = Refit(hn::Add(half_sum, above3), hn::MulAdd(count3, two, quarter), best);
    s4 = Refit(hn::Add(half_sum, above4), hn::MulAdd(count4, two, quarter), best);
  }
}

/// Step 2 with any width.
HWY_INLINE void SearchScale(const float* HWY_RESTRICT r, size_t n, int bits, hn::Vec<TagF32> largest_r,
                            const Best& best) {
  const TagF32 d;
  const float levels = static_cast<float>((1 << bits) - 1);
  const auto largest = hn::Set(d, levels);
  const auto half = hn::Set(d, 0.5f * levels);
  for (int clip = 0; clip < 3; ++clip) {
    auto s = hn::Mul(largest_r, hn::Set(d, 2 * kClip[clip] / levels));
    for (int round = 0; round < 2; ++round) {
      const auto inverse = InverseOrZero(s);
      auto a = hn::Zero(d);
      auto b = hn::Zero(d);
      for (size_t c = 0; c < n; ++c) {
        const auto x = hn::Load(d, r + c * 16);
        const auto level = hn::Sub(hn::ConvertTo(d, Code(hn::MulAdd(x, inverse, half), largest)), half);
        a = hn::MulAdd(x, level, a);
        b = hn::MulAdd(level, level, b);
      }
      s = Refit(a, b, best);
    }
  }
}

/// Steps 3 and 4 for vectors of tokens.
///   correction, image  sum w e and sum w r of this channel
///   error              out: e of this channel
HWY_INLINE hn::Vec<TagI32> CodeChannel(hn::Vec<TagF32> r, hn::Vec<TagF32> correction, hn::Vec<TagF32> image,
                                       hn::Vec<TagF32> weight, hn::Vec<TagF32> scale, hn::Vec<TagF32> inverse,
                                       hn::Vec<TagF32> largest, hn::Vec<TagF32> half, hn::Vec<TagF32>& numerator,
                                       hn::Vec<TagF32>& denominator, hn::Vec<TagF32>& error) {
  const TagF32 d;
  const auto x = hn::Add(r, correction);
  const auto code = Code(hn::MulAdd(x, inverse, half), largest);
  const auto level = hn::Sub(hn::ConvertTo(d, code), half);
  error = hn::NegMulAdd(scale, level, r);
  const auto v = hn::Add(r, image);
  const auto weighted = hn::Mul(v, weight);
  numerator = hn::MulAdd(weighted, v, numerator);
  denominator = hn::MulAdd(weighted, hn::Sub(v, hn::Add(error, correction)), denominator);
  return code;
}

/// Codes and gain of one vector of tokens.
///   r        [n][16] from the first token's lane on;  errors [n][16] likewise, scratch
///   weights  [n][n], or nullptr (A = I);  diagonal [n]
///   rows     of codes, from the first token's lane on
/// Returns s' = g s.
template <int kBits>
HWY_INLINE hn::Vec<TagF32> CodeTokens(const float* HWY_RESTRICT r, size_t n, const float* HWY_RESTRICT weights,
                                      const float* HWY_RESTRICT diagonal, hn::Vec<TagF32> scale, hn::Vec<TagI32> kept,
                                      float* HWY_RESTRICT errors, const CodeRows& rows) {
  const TagF32 d;
  const TagI32 di;
  constexpr int kRowBits = kBits == 3 ? 2 : kBits;
  constexpr size_t kPerRow = 32 / kRowBits;
  const auto inverse = InverseOrZero(scale);
  const auto keep = hn::IfThenElseZero(hn::RebindMask(di, hn::Gt(scale, hn::Zero(d))), kept);
  const auto largest = hn::Set(d, static_cast<float>((1 << kBits) - 1));
  const auto half = hn::Set(d, 0.5f * static_cast<float>((1 << kBits) - 1));
  auto numerator = hn::Zero(d);
  auto denominator = hn::Zero(d);
  auto word = hn::Zero(di);
  auto high_word = hn::Zero(di);
  for (size_t c = 0; c < n; c += 4) {
    auto fix0 = hn::Zero(d), fix1 = hn::Zero(d), fix2 = hn::Zero(d), fix3 = hn::Zero(d);
    auto image0 = hn::Zero(d), image1 = hn::Zero(d), image2 = hn::Zero(d), image3 = hn::Zero(d);
    const auto r0 = hn::Load(d, r + (c + 0) * 16);
    const auto r1 = hn::Load(d, r + (c + 1) * 16);
    const auto r2 = hn::Load(d, r + (c + 2) * 16);
    const auto r3 = hn::Load(d, r + (c + 3) * 16);
    auto w10 = hn::Zero(d), w20 = hn::Zero(d), w21 = hn::Zero(d), w30 = hn::Zero(d), w31 = hn::Zero(d),
         w32 = hn::Zero(d);
    if (weights != nullptr) {
      const float* HWY_RESTRICT w = weights + c * n;
      for (size_t i = 0; i < c; ++i) {
        const auto ei = hn::Load(d, errors + i * 16);
        const auto ri = hn::Load(d, r + i * 16);
        const auto w0 = hn::Set(d, w[i]);
        const auto w1 = hn::Set(d, w[n + i]);
        const auto w2 = hn::Set(d, w[2 * n + i]);
        const auto w3 = hn::Set(d, w[3 * n + i]);
        fix0 = hn::MulAdd(w0, ei, fix0);
        fix1 = hn::MulAdd(w1, ei, fix1);
        fix2 = hn::MulAdd(w2, ei, fix2);
        fix3 = hn::MulAdd(w3, ei, fix3);
        image0 = hn::MulAdd(w0, ri, image0);
        image1 = hn::MulAdd(w1, ri, image1);
        image2 = hn::MulAdd(w2, ri, image2);
        image3 = hn::MulAdd(w3, ri, image3);
      }
      w10 = hn::Set(d, w[n + c]);
      w20 = hn::Set(d, w[2 * n + c]);
      w21 = hn::Set(d, w[2 * n + c + 1]);
      w30 = hn::Set(d, w[3 * n + c]);
      w31 = hn::Set(d, w[3 * n + c + 1]);
      w32 = hn::Set(d, w[3 * n + c + 2]);
      image1 = hn::MulAdd(w10, r0, image1);
      image2 = hn::MulAdd(w21, r1, hn::MulAdd(w20, r0, image2));
      image3 = hn::MulAdd(w32, r2, hn::MulAdd(w31, r1, hn::MulAdd(w30, r0, image3)));
    }
    auto e0 = r0, e1 = r1, e2 = r2, e3 = r3;
    const auto code0 = CodeChannel(r0, fix0, image0, hn::Set(d, diagonal[c]), scale, inverse, largest, half, numerator,
                                   denominator, e0);
    fix1 = hn::MulAdd(w10, e0, fix1);
    const auto code1 = CodeChannel(r1, fix1, image1, hn::Set(d, diagonal[c + 1]), scale, inverse, largest, half,
                                   numerator, denominator, e1);
    fix2 = hn::MulAdd(w21, e1, hn::MulAdd(w20, e0, fix2));
    const auto code2 = CodeChannel(r2, fix2, image2, hn::Set(d, diagonal[c + 2]), scale, inverse, largest, half,
                                   numerator, denominator, e2);
    fix3 = hn::MulAdd(w32, e2, hn::MulAdd(w31, e1, hn::MulAdd(w30, e0, fix3)));
    const auto code3 = CodeChannel(r3, fix3, image3, hn::Set(d, diagonal[c + 3]), scale, inverse, largest, half,
                                   numerator, denominator, e3);
    hn::Store(e0, d, errors + (c + 0) * 16);
    hn::Store(e1, d, errors + (c + 1) * 16);
    hn::Store(e2, d, errors + (c + 2) * 16);
    hn::Store(e3, d, errors + (c + 3) * 16);
    // Four consecutive elements of a row are the four bytes of a dword, in one bit class.
    const auto four =
        hn::Or(hn::Or(code0, hn::ShiftLeft<8>(code1)), hn::Or(hn::ShiftLeft<16>(code2), hn::ShiftLeft<24>(code3)));
    const auto low = kBits == 3 ? hn::And(four, hn::Set(di, 0x03030303)) : four;
    word = hn::Or(word, hn::ShiftLeftSame(low, CodeShift(c % kPerRow, kRowBits)));
    if ((c + 4) % kPerRow == 0) {
      hn::Store(hn::And(word, keep), di, rows.low + c / kPerRow * 16);
      word = hn::Zero(di);
    }
    if constexpr (kBits == 3) {
      const auto high = hn::And(hn::ShiftRight<2>(four), hn::Set(di, 0x01010101));
      high_word = hn::Or(high_word, hn::ShiftLeftSame(high, CodeShift(c % 32, 1)));
      if ((c + 4) % 32 == 0) {
        hn::Store(hn::And(high_word, keep), di, rows.high + c / 32 * 16);
        high_word = hn::Zero(di);
      }
    }
  }
  const auto ratio = hn::Div(numerator, denominator);
  const auto gain =
      hn::IfThenElse(hn::Gt(denominator, hn::Zero(d)),
                     hn::Min(hn::Max(ratio, hn::Set(d, kMinGain)), hn::Set(d, kMaxGain)), hn::Set(d, 1.0f));
  return hn::IfThenElseZero(hn::RebindMask(d, hn::Ne(keep, hn::Zero(di))), hn::Mul(gain, scale));
}

/// Step 5.
HWY_INLINE void StoreTokenScales(const float* HWY_RESTRICT scales, float* HWY_RESTRICT base,
                                 uint8_t* HWY_RESTRICT stored) {
  const float largest = *std::max_element(scales, scales + kPageTokens);
  *base = largest > 0 ? std::ldexp(1.0f, std::ilogb(largest)) : 0.0f;
  for (int t = 0; t < kPageTokens; ++t) stored[t] = EncodeE3M5(scales[t], *base);
}

/// Scratch of one head.
struct Work {
  float* rows;      // [128][n]
  float* tiles;     // [8][n][16]
  float* errors;    // [n][16]
  float* mean;      // [n]
  float* weights;   // [n][n]
  float* diagonal;  // [n]
  float* scales;    // [128] s'
  int32_t* keep;    // [128] 0 for exact tokens, else -1
};

/// Codes and s' of tile `index`; r in place of y.
template <int kBits>
HWY_INLINE void SealTile(const PageLayout& layout, size_t index, bool with_metric, const Work& work,
                         std::byte* HWY_RESTRICT head) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  float* tile = work.tiles + index * 16 * n;
  const int32_t* keep = work.keep + index * 16;
  HWY_ALIGN float factors[16];
  HWY_ALIGN float sums[16];
  HWY_ALIGN float largest[16];
  HWY_ALIGN float best_score[16] = {};  // no candidate of r = 0 scores above 0: its scale stays 0
  HWY_ALIGN float best_scale[16] = {};
  if (layout.recipe.rank_one_mean) {
    MeanFactors(tile, n, work.mean, keep, reinterpret_cast<f16_bits*>(head + layout.mean_factor_at) + index * 16,
                factors);
  } else {
    std::fill_n(factors, 16, 1.0f);
  }
  SubtractMean(tile, n, work.mean, factors, sums, largest);
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const Best best = {best_score + lane, best_scale + lane};
    if constexpr (kBits == 2) {
      SearchScale2(tile + lane, n, hn::Load(d, sums + lane), hn::Load(d, largest + lane), best);
    } else {
      SearchScale(tile + lane, n, kBits, hn::Load(d, largest + lane), best);
    }
    const auto s =
        CodeTokens<kBits>(tile + lane, n, with_metric ? work.weights : nullptr, work.diagonal, hn::Load(d, best.scale),
                          hn::Load(TagI32(), keep + lane), work.errors + lane, CodeRows::Of(layout, head, index, lane));
    hn::Store(s, d, work.scales + index * 16 + lane);
  }
}

void SealRazorKeys(const PageLayout& layout, const f16_bits* HWY_RESTRICT rows_f16, const TokenMask& exact,
                   const SecondMoment* moment, std::byte* HWY_RESTRICT page) {
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  Scratch scratch(n);
  const Work work = {scratch.Take<float>(kPageTokens * n), scratch.Take<float>(kPageTokens * n),
                     scratch.Take<float>(16 * n),          scratch.Take<float>(n),
                     scratch.Take<float>(n * n),           scratch.Take<float>(n),
                     scratch.Take<float>(kPageTokens),     scratch.Take<int32_t>(kPageTokens)};
  float* square = scratch.Take<float>(n * n);  // M of a head, lower triangle
  for (int t = 0; t < kPageTokens; ++t) work.keep[t] = exact.Test(t) ? 0 : -1;
  float* head_scalars = reinterpret_cast<float*>(page + layout.head_scalars_at);

  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::byte* head = page + layout.heads_at + h * layout.head_bytes;
    LoadHead(rows_f16, layout.shape, h, layout.recipe.rotate, exact, nullptr, work.rows);
    PageMean(work.rows, n, kPageTokens - exact.Count(), reinterpret_cast<int16_t*>(head + layout.mean_at),
             head_scalars + 2 * h, work.mean);
    RowsToTiles(work.rows, n, work.tiles);
    bool with_metric = moment != nullptr && !moment->empty();
    if (with_metric) {
      moment->ReadLower(h, square);
      with_metric = FactorMetric(square, n, work.weights, work.diagonal);
    }
    if (!with_metric) std::fill_n(work.diagonal, n, 1.0f);
    for (size_t tile = 0; tile < kPageTokens / 16; ++tile) {
      switch (layout.recipe.bits) {
        case 2: SealTile<2>(layout, tile, with_metric, work, head); break;
        case 3: SealTile<3>(layout, tile, with_metric, work, head); break;
        default: SealTile<4>(layout, tile, with_metric, work, head); break;
      }
    }
    StoreTokenScales(work.scales, head_scalars + 2 * h + 1, reinterpret_cast<uint8_t*>(head + layout.scale_at));
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {

HWY_EXPORT(SealRazorKeys);

void SealRazorKey(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
                  std::byte* page) {
  HWY_DYNAMIC_DISPATCH(SealRazorKeys)(layout, rows, exact, moment, page);
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE
