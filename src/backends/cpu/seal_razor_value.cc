// Seals a page with Codec::kRazorValue: a norm for each token and head, scale and centre for each channel and group of tokens
// (the whole page, or 32 or 64 tokens of it: steps 2 to 4 then take the group for the page).
//
// Exact formulas for one head, in this order (L = 2^bits - 1, level of a code l = code - L/2, rne rounds halves to even):
//   1. y_t = H v_t; n_t = ||y_t||, stored as EncodeE5M3; u_t = y_t / stored n_t (0 if that is 0).
//   2. Range of each channel over the tokens that are not exact: mid = (mn + mx) / 2, half = (mx - mn) / 2; x = u - mid.
//      For c in 1, .9: s = 2 c half / L, m = 0, then twice { l = level of clamp(rne((x - m) / s + L/2), 0, L); regress x on l:
//      s = cov(x, l) / var(l), m = mean x - s mean l }. The (s, m) with the largest cov^2 / var (lowest squared error) is kept;
//      a step whose codes are all equal, or with cov <= 0, is not taken (its clip ends there). half = 0: s = 0, m = 0.
//   3. centre = mid + m. It is stored in eighths of s_c up to 127, and a channel whose tokens are much alike must not lose it:
//      where s < |centre| / 14, s becomes that and the centre moves up by s / 2, which puts a level on the values.
//      s_c = EncodeE5M3(s), z_c = clamp(rne(8 centre / s_c), -127, 127); both 0 if s_c is 0.
//   4. code = clamp(rne((u - z_c s_c / 8) / s_c + L/2), 0, L) with the stored s_c, z_c; 0 if s_c is 0.
//   5. Exact tokens: norm 0, codes 0. They take part in no statistic.
//
// Order of work: rows [128][D] -> norms -> down the columns, lanes = channels: range, two passes with both clips at once -> codes.
// D = 64: 16 KB f16 in, 2304 bytes out.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "src/backends/cpu/scratch.h"
#include "src/backends/cpu/seal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/seal_razor_value.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "src/backends/cpu/codes-inl.h"
#include "src/backends/cpu/head_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kSmallerClip = 0.9f;
constexpr float kCentreSteps = 8;  // a centre is stored in units of s / 8
constexpr float kReach = 14;       // of 127 / 8 = 15.9 scales: room for the rounding of s to 3 mantissa bits

/// Rows of the tokens that take part, one below the other (a gap would be a row of 0 in the statistics).
struct LiveTokens {
  int count = 0;
  int token[kPageTokens];

  LiveTokens Within(int first, int end) const {
    LiveTokens part;
    for (int i = 0; i < count; ++i) {
      if (token[i] >= first && token[i] < end) part.token[part.count++] = token[i];
    }
    return part;
  }
};

/// Step 1: stored norms; rows become u.
HWY_INLINE void DivideByNorms(float* HWY_RESTRICT rows, size_t n, const LiveTokens& live,
                              uint8_t* HWY_RESTRICT stored) {
  const TagF32 d;
  std::memset(stored, 0, kPageTokens);
  for (int i = 0; i < live.count; ++i) {
    float* row = rows + static_cast<size_t>(live.token[i]) * n;
    auto sum0 = hn::Zero(d);
    auto sum1 = hn::Zero(d);
    for (size_t c = 0; c < n; c += 2 * hn::Lanes(d)) {  // head_dim is a multiple of 32
      const auto x0 = hn::Load(d, row + c);
      const auto x1 = hn::Load(d, row + c + hn::Lanes(d));
      sum0 = hn::MulAdd(x0, x0, sum0);
      sum1 = hn::MulAdd(x1, x1, sum1);
    }
    const uint8_t norm = EncodeE5M3(std::sqrt(hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)))));
    stored[live.token[i]] = norm;
    const auto inverse = hn::Set(d, norm != 0 ? 1.0f / DecodeE5M3(norm) : 0.0f);
    for (size_t c = 0; c < n; c += hn::Lanes(d)) hn::Store(hn::Mul(hn::Load(d, row + c), inverse), d, row + c);
  }
}

/// Takes the regression step of one clip where it is valid, and remembers it in `best` where it scores highest.
HWY_INLINE void Regress(hn::Vec<TagF32> sum_l, hn::Vec<TagF32> sum_ll, hn::Vec<TagF32> sum_xl, hn::Vec<TagF32> sum_x,
                        hn::Vec<TagF32> inverse_count, hn::Vec<TagF32>& scale, hn::Vec<TagF32>& middle,
                        hn::Vec<TagF32>& best_score, hn::Vec<TagF32>& best_scale, hn::Vec<TagF32>& best_middle) {
  const TagF32 d;
  const auto mean_l = hn::Mul(sum_l, inverse_count);
  const auto variance = hn::NegMulAdd(sum_l, mean_l, sum_ll);  // times count; at least 1/2 unless all codes are equal
  const auto covariance = hn::NegMulAdd(sum_x, mean_l, sum_xl);
  const auto valid = hn::And(hn::Gt(variance, hn::Set(d, 0.25f)), hn::Gt(covariance, hn::Zero(d)));
  const auto new_scale = hn::Div(covariance, variance);
  const auto new_middle = hn::NegMulAdd(new_scale, mean_l, hn::Mul(sum_x, inverse_count));
  const auto score = hn::Mul(new_scale, covariance);
  scale = hn::IfThenElse(valid, new_scale, scale);
  middle = hn::IfThenElse(valid, new_middle, middle);
  const auto better = hn::And(valid, hn::Gt(score, best_score));
  best_score = hn::IfThenElse(better, score, best_score);
  best_scale = hn::IfThenElse(better, new_scale, best_scale);
  best_middle = hn::IfThenElse(better, new_middle, best_middle);
}

/// Step 2 for the channels of one vector.
///   column  u of these channels, stride n
HWY_INLINE void FitChannels(const float* HWY_RESTRICT column, size_t n, const LiveTokens& live, float levels,
                            float* HWY_RESTRICT out_scale, float* HWY_RESTRICT out_centre) {
  const TagF32 d;
  auto mn = hn::Set(d, live.count > 0 ? std::numeric_limits<float>::max() : 0.0f);
  auto mx = hn::Set(d, live.count > 0 ? std::numeric_limits<float>::lowest() : 0.0f);
  for (int i = 0; i < live.count; ++i) {
    const auto u = hn::Load(d, column + static_cast<size_t>(live.token[i]) * n);
    mn = hn::Min(mn, u);
    mx = hn::Max(mx, u);
  }
  const auto mid = hn::Mul(hn::Add(mx, mn), hn::Set(d, 0.5f));
  const auto span = hn::Mul(hn::Sub(mx, mn), hn::Set(d, 1.0f / levels));
  const auto largest = hn::Set(d, levels);
  const auto half = hn::Set(d, 0.5f * levels);
  const auto inverse_count = hn::Set(d, live.count > 0 ? 1.0f / static_cast<float>(live.count) : 0.0f);
  auto scale0 = span;
  auto scale1 = hn::Mul(span, hn::Set(d, kSmallerClip));
  auto middle0 = hn::Zero(d);
  auto middle1 = hn::Zero(d);
  auto best_score = hn::Zero(d);
  auto best_scale = span;
  auto best_middle = hn::Zero(d);
  for (int round = 0; round < 2; ++round) {
    const auto inverse0 = InverseOrZero(scale0);
    const auto inverse1 = InverseOrZero(scale1);
    const auto shift0 = hn::NegMulAdd(middle0, inverse0, half);
    const auto shift1 = hn::NegMulAdd(middle1, inverse1, half);
    auto sum_x = hn::Zero(d);
    auto sum_l0 = hn::Zero(d), sum_ll0 = hn::Zero(d), sum_xl0 = hn::Zero(d);
    auto sum_l1 = hn::Zero(d), sum_ll1 = hn::Zero(d), sum_xl1 = hn::Zero(d);
    for (int i = 0; i < live.count; ++i) {
      const auto x = hn::Sub(hn::Load(d, column + static_cast<size_t>(live.token[i]) * n), mid);
      const auto l0 = hn::Sub(hn::ConvertTo(d, Code(hn::MulAdd(x, inverse0, shift0), largest)), half);
      const auto l1 = hn::Sub(hn::ConvertTo(d, Code(hn::MulAdd(x, inverse1, shift1), largest)), half);
      sum_x = hn::Add(sum_x, x);
      sum_l0 = hn::Add(sum_l0, l0);
      sum_l1 = hn::Add(sum_l1, l1);
      sum_ll0 = hn::MulAdd(l0, l0, sum_ll0);
      sum_ll1 = hn::MulAdd(l1, l1, sum_ll1);
      sum_xl0 = hn::MulAdd(x, l0, sum_xl0);
      sum_xl1 = hn::MulAdd(x, l1, sum_xl1);
    }
    Regress(sum_l0, sum_ll0, sum_xl0, sum_x, inverse_count, scale0, middle0, best_score, best_scale, best_middle);
    Regress(sum_l1, sum_ll1, sum_xl1, sum_x, inverse_count, scale1, middle1, best_score, best_scale, best_middle);
  }
  hn::Store(best_scale, d, out_scale);
  hn::Store(hn::Add(mid, best_middle), d, out_centre);
}

/// Step 3: stored parameters; scale and centre become 1 / s_c and what is added to u / s_c.
HWY_INLINE void StoreChannels(size_t n, float levels, float* HWY_RESTRICT scale, float* HWY_RESTRICT centre,
                              uint8_t* HWY_RESTRICT stored_scale, int8_t* HWY_RESTRICT stored_centre) {
  for (size_t c = 0; c < n; ++c) {
    float fitted = scale[c];
    float middle = centre[c];
    const float least = std::abs(middle) / kReach;
    if (fitted < least) {
      fitted = least;
      middle += least / 2;
    }
    stored_scale[c] = EncodeE5M3(fitted);
    const float s = DecodeE5M3(stored_scale[c]);
    const float inverse = s > 0 ? 1.0f / s : 0.0f;
    const float z = std::clamp(std::nearbyint(kCentreSteps * middle * inverse), -127.0f, 127.0f);
    stored_centre[c] = static_cast<int8_t>(z);
    scale[c] = inverse;
    centre[c] = s > 0 ? 0.5f * levels - z / kCentreSteps : 0.0f;
  }
}

/// Step 4 for 16 channels from `c` on and the tokens of one group.
HWY_INLINE void TileCodes(const PageLayout& layout, const float* HWY_RESTRICT rows, size_t c, size_t first_token,
                          const float* HWY_RESTRICT inverse, const float* HWY_RESTRICT shift, const TokenMask& exact,
                          std::byte* HWY_RESTRICT head) {
  const TagF32 d;
  const TagI32 di;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const size_t end_token = first_token + static_cast<size_t>(layout.tokens_per_group());
  const auto largest = hn::Set(d, static_cast<float>((1 << layout.recipe.bits) - 1));
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const auto on_u = hn::Load(d, inverse + c + lane);
    const auto added = hn::Load(d, shift + c + lane);
    const CodeRows code_rows = CodeRows::Of(layout, head, c / 16, lane);
    for (size_t t0 = first_token; t0 < end_token; t0 += 32) {
      StoreCodes(code_rows, t0, hn::Set(di, -1), [&](size_t t) HWY_ATTR {
        if (exact.Test(static_cast<int>(t))) return hn::Zero(di);
        return Code(hn::MulAdd(hn::Load(d, rows + t * n + c + lane), on_u, added), largest);
      });
    }
  }
}

void SealRazorValues(const PageLayout& layout, const f16_bits* HWY_RESTRICT rows_f16, const TokenMask& exact,
                     std::byte* HWY_RESTRICT page) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const float levels = static_cast<float>((1 << layout.recipe.bits) - 1);
  Scratch scratch(n);
  float* rows = scratch.Take<float>(kPageTokens * n);
  float* scale = scratch.Take<float>(n);
  float* centre = scratch.Take<float>(n);
  LiveTokens live;
  for (int t = 0; t < kPageTokens; ++t) {
    if (!exact.Test(t)) live.token[live.count++] = t;
  }

  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::byte* head = page + layout.heads_at + h * layout.head_bytes;
    LoadHead(rows_f16, layout.shape, h, layout.recipe.rotate, exact, nullptr, rows);
    DivideByNorms(rows, n, live, reinterpret_cast<uint8_t*>(head + layout.norm_at));
    for (int first = 0; first < kPageTokens; first += layout.tokens_per_group()) {
      const LiveTokens group = live.Within(first, first + layout.tokens_per_group());
      const int64_t at = int64_t{first / layout.tokens_per_group()} * layout.shape.head_dim;
      for (size_t c = 0; c < n; c += hn::Lanes(d)) FitChannels(rows + c, n, group, levels, scale + c, centre + c);
      StoreChannels(n, levels, scale, centre, reinterpret_cast<uint8_t*>(head + layout.scale_at + at),
                    reinterpret_cast<int8_t*>(head + layout.centre_at + at));
      for (size_t c = 0; c < n; c += 16)
        TileCodes(layout, rows, c, static_cast<size_t>(first), scale, centre, exact, head);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {

HWY_EXPORT(SealRazorValues);

void SealRazorValue(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, std::byte* page) {
  HWY_DYNAMIC_DISPATCH(SealRazorValues)(layout, rows, exact, page);
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE
