// Seals a page with Codec::kAffine (KIVI, OScaR, QuaRot): x = scale * code + offset, f16 scale and offset for each group.
//
// Exact formulas, in this order (f16(.) rounds to nearest even and saturates at +-65504; rne rounds halves to even):
//   1. token_scale (kAllHeads): n_t = f16(sqrt(sum of k^2 over all kv heads of token t)), 1 if that is not > 0; stored.
//   2. x = H k / n_t (no H without `rotate`, n_t = 1 without token scale).
//   3. mn, mx over the group's tokens (per channel: group_size tokens of a channel) or channels (per token: group_size channels
//      of a token); exact tokens take no part. A group without tokens has mn = mx = 0.
//      kRoundedWithZero ("B0"): mn = min(mn, 0), mx = max(mx, 0). Both are then multiplied by clip_percent / 100.
//   4. s = (mx - mn) / L, L = 2^bits - 1; the stored scale is f16(s). Stored zeros are +0.
//      kSymmetric: s = max(|mn|, |mx|) / (2^(bits-1) - 1) instead; it goes on as B with z = 2^(bits-1).
//        f16(s) = 0:            offset = f16(mn before clipping), codes 0.
//        kFloatMin ("A"):       offset = f16(mn),     code = clamp(rne((x - offset) / f16(s)), 0, L): stored parameters.
//        kRounded ("B"):        z = rne(-mn / s), offset = f16(-z s), code = clamp(rne(x / s + z), 0, L): s before rounding,
//                               as the published kernels do; computed as (x - mn) / s + (mn + z s) / s, which keeps the
//                               last bits when |z| is large.
//   5. Exact tokens: token scale 1, value parameters 0, codes 0.
//
// Order of work, one head at a time: rows (f32, rotated) -> group ranges -> parameters -> codes.
//   keys    per channel: ranges run down the columns of rows [128][D]; per token: along them; codes from tiles [8][D][16],
//           lanes = tokens
//   values  ranges run along the rows; codes from rows, lanes = channels
// Bytes, D = 64, groups of 32: 16 KB f16 in, 2 KB codes + 1 KB parameters out, 64 KB of f32 in between (L2).
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "src/backends/cpu/scratch.h"
#include "src/backends/cpu/seal.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/seal_affine.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "src/backends/cpu/codes-inl.h"
#include "src/backends/cpu/head_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

HWY_INLINE f16_bits SaturatedF16(float x) { return F16FromF32(std::clamp(x, -65504.0f, 65504.0f)); }

/// What the codes of a group are computed from: code = clamp(rne((x - base) * inverse + shift)).
struct GroupCoders {
  float* base;     // [num_groups]
  float* inverse;  // [num_groups]
  float* shift;    // [num_groups]
};

/// One group's range as steps 3 and 4 take it.
struct GroupRange {
  float low;
  float scale;
  float zero;  // rounded kinds
};
HWY_INLINE GroupRange RangeOf(const SideRecipe& recipe, float low, float high) {
  const float largest = static_cast<float>((1 << recipe.bits) - 1);
  if (recipe.zero_point == ZeroPoint::kSymmetric) {
    const float levels = static_cast<float>((1 << (recipe.bits - 1)) - 1);
    const float clip = static_cast<float>(recipe.clip_percent) / 100.0f;
    return {0.0f, clip * std::max(std::abs(low), std::abs(high)) / levels, levels + 1};
  }
  if (recipe.zero_point == ZeroPoint::kRoundedWithZero) {
    low = std::min(low, 0.0f);
    high = std::max(high, 0.0f);
  }
  if (recipe.clip_percent != 100) {
    const float clip = static_cast<float>(recipe.clip_percent) / 100.0f;
    low *= clip;
    high *= clip;
  }
  const float scale = (high - low) / largest + 0.0f;  // no -0
  return {low, scale, std::nearbyint(-low / scale)};
}

/// Step 4: stored parameters and coders of `count` groups from their ranges. `low` may be coders.base.
HWY_INLINE void MakeGroups(const SideRecipe& recipe, size_t count, const float* HWY_RESTRICT low,
                           const float* HWY_RESTRICT high, GroupCoders coders, f16_bits* HWY_RESTRICT scales,
                           f16_bits* HWY_RESTRICT offsets) {
  for (size_t g = 0; g < count; ++g) {
    const GroupRange range = RangeOf(recipe, low[g], high[g]);
    const float s = range.scale;
    const f16_bits stored_scale = SaturatedF16(s);
    float base = low[g];
    float inverse = 0;
    float shift = 0;
    float offset = low[g];
    if (stored_scale != 0) {
      if (recipe.zero_point == ZeroPoint::kFloatMin) {
        base = F32FromF16(SaturatedF16(low[g]));
        inverse = 1.0f / F32FromF16(stored_scale);
      } else {
        base = range.low;
        inverse = 1.0f / s;
        shift = std::fma(range.zero, s, range.low) * inverse;
        offset = -range.zero * s;
      }
    }
    scales[g] = stored_scale;
    offsets[g] = SaturatedF16(offset + 0.0f);
    coders.base[g] = base;
    coders.inverse[g] = inverse;
    coders.shift[g] = shift;
  }
}

HWY_INLINE hn::Vec<TagI32> GroupCode(hn::Vec<TagF32> x, hn::Vec<TagF32> base, hn::Vec<TagF32> inverse,
                                     hn::Vec<TagF32> shift, hn::Vec<TagF32> largest) {
  return Code(hn::MulAdd(hn::Sub(x, base), inverse, shift), largest);
}

/// Step 1: [128] factors 1 / n_t; the stored norms go to `stored`.
void TokenFactors(const f16_bits* HWY_RESTRICT rows, HeadShape shape, const TokenMask& exact,
                  f16_bits* HWY_RESTRICT stored, float* HWY_RESTRICT factors) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(shape.num_kv_heads) * static_cast<size_t>(shape.head_dim);
  for (int t = 0; t < kPageTokens; ++t) {
    float norm = 0;
    if (!exact.Test(t)) {
      auto sum0 = hn::Zero(d);
      auto sum1 = hn::Zero(d);
      const f16_bits* row = rows + static_cast<size_t>(t) * n;
      for (size_t i = 0; i < n; i += 2 * hn::Lanes(d)) {  // head_dim is a multiple of 32
        const auto x0 = LoadFinite(row + i);
        const auto x1 = LoadFinite(row + i + hn::Lanes(d));
        sum0 = hn::MulAdd(x0, x0, sum0);
        sum1 = hn::MulAdd(x1, x1, sum1);
      }
      norm = std::sqrt(hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1))));
    }
    const f16_bits rounded = SaturatedF16(norm);
    stored[t] = rounded != 0 ? rounded : F16FromF32(1.0f);
    factors[t] = 1.0f / F32FromF16(stored[t]);
  }
}

/// Ranges of one channel group of keys: tokens [first, last) of each channel.
HWY_INLINE void RangeOfTokens(const float* HWY_RESTRICT rows, size_t n, int first, int last, const TokenMask& exact,
                              float* HWY_RESTRICT low, float* HWY_RESTRICT high) {
  const TagF32 d;
  bool any = false;
  for (int t = first; t < last; ++t) any |= !exact.Test(t);
  for (size_t c = 0; c < n; c += hn::Lanes(d)) {
    auto mn = hn::Set(d, any ? std::numeric_limits<float>::max() : 0.0f);
    auto mx = hn::Set(d, any ? std::numeric_limits<float>::lowest() : 0.0f);
    for (int t = first; t < last; ++t) {
      if (exact.Test(t)) continue;
      const auto x = hn::Load(d, rows + static_cast<size_t>(t) * n + c);
      mn = hn::Min(mn, x);
      mx = hn::Max(mx, x);
    }
    hn::Store(mn, d, low + c);
    hn::Store(mx, d, high + c);
  }
}

/// Codes of 16 tokens. Lanes whose `keep` is 0 get code 0.
HWY_INLINE void KeyTileCodes(const PageLayout& layout, const float* HWY_RESTRICT tile, size_t index, GroupCoders coders,
                             const int32_t* HWY_RESTRICT keep, std::byte* HWY_RESTRICT head) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const auto largest = hn::Set(d, static_cast<float>((1 << layout.recipe.bits) - 1));
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const auto kept = hn::Load(TagI32(), keep + lane);
    const CodeRows rows = CodeRows::Of(layout, head, index, lane);
    for (size_t c0 = 0; c0 < n; c0 += 32) {
      StoreCodes(rows, c0, kept, [&](size_t c) HWY_ATTR {
        return GroupCode(hn::Load(d, tile + c * 16 + lane), hn::Set(d, coders.base[c]), hn::Set(d, coders.inverse[c]),
                         hn::Set(d, coders.shift[c]), largest);
      });
    }
  }
}

/// The same for groups along channels.
///   coders [head_dim / group_size][128]
HWY_INLINE void TokenKeyTileCodes(const PageLayout& layout, const float* HWY_RESTRICT tile, size_t index,
                                  GroupCoders coders, const int32_t* HWY_RESTRICT keep, std::byte* HWY_RESTRICT head) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const size_t group_size = static_cast<size_t>(layout.recipe.group_size);
  const auto largest = hn::Set(d, static_cast<float>((1 << layout.recipe.bits) - 1));
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const auto kept = hn::Load(TagI32(), keep + lane);
    const CodeRows rows = CodeRows::Of(layout, head, index, lane);
    for (size_t c0 = 0; c0 < n; c0 += 32) {
      const size_t at = c0 / group_size * kPageTokens + index * 16 + lane;
      const auto base = hn::Load(d, coders.base + at);
      const auto inverse = hn::Load(d, coders.inverse + at);
      const auto shift = hn::Load(d, coders.shift + at);
      StoreCodes(rows, c0, kept, [&](size_t c) HWY_ATTR {
        return GroupCode(hn::Load(d, tile + c * 16 + lane), base, inverse, shift, largest);
      });
    }
  }
}

/// Ranges of all groups along channels: low, high [head_dim / group_size][128].
HWY_INLINE void RangesOfChannels(const float* HWY_RESTRICT rows, size_t n, size_t group_size, float* HWY_RESTRICT low,
                                 float* HWY_RESTRICT high) {
  const TagF32 d;
  for (size_t t = 0; t < kPageTokens; ++t) {
    const float* row = rows + t * n;
    for (size_t c = 0; c < n; c += group_size) {
      auto mn = hn::Load(d, row + c);
      auto mx = mn;
      for (size_t i = hn::Lanes(d); i < group_size; i += hn::Lanes(d)) {
        const auto x = hn::Load(d, row + c + i);
        mn = hn::Min(mn, x);
        mx = hn::Max(mx, x);
      }
      low[c / group_size * kPageTokens + t] = hn::GetLane(hn::MinOfLanes(d, mn));
      high[c / group_size * kPageTokens + t] = hn::GetLane(hn::MaxOfLanes(d, mx));
    }
  }
}

void SealAffineKeys(const PageLayout& layout, const f16_bits* HWY_RESTRICT rows_f16, const TokenMask& exact,
                    std::byte* HWY_RESTRICT page) {
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const int group_size = layout.recipe.group_size;
  const bool per_token = layout.recipe.axis == Axis::kPerToken;
  const size_t num_groups = static_cast<size_t>(kPageTokens / group_size);  // along tokens, of a channel
  Scratch scratch(n);
  float* rows = scratch.Take<float>(kPageTokens * n);
  float* tiles = scratch.Take<float>(kPageTokens * n);
  float* low = scratch.Take<float>(num_groups * n);
  float* high = scratch.Take<float>(num_groups * n);
  const GroupCoders coders = {scratch.Take<float>(num_groups * n), scratch.Take<float>(num_groups * n),
                              scratch.Take<float>(num_groups * n)};
  float* factors = scratch.Take<float>(kPageTokens);
  int32_t* keep = scratch.Take<int32_t>(kPageTokens);
  for (int t = 0; t < kPageTokens; ++t) keep[t] = exact.Test(t) ? 0 : -1;

  const bool scaled = layout.recipe.token_scale == TokenScale::kAllHeads;
  if (scaled)
    TokenFactors(rows_f16, layout.shape, exact, reinterpret_cast<f16_bits*>(page + layout.token_scale_at), factors);

  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::byte* head = page + layout.heads_at + h * layout.head_bytes;
    LoadHead(rows_f16, layout.shape, h, layout.recipe.rotate, exact, scaled ? factors : nullptr, rows);
    if (per_token) {  // as many groups: head_dim / group_size for each of 128 tokens
      RangesOfChannels(rows, n, static_cast<size_t>(group_size), low, high);
    } else {
      for (size_t g = 0; g < num_groups; ++g) {
        const int first = static_cast<int>(g) * group_size;
        RangeOfTokens(rows, n, first, first + group_size, exact, low + g * n, high + g * n);
      }
    }
    MakeGroups(layout.recipe, num_groups * n, low, high, coders, reinterpret_cast<f16_bits*>(head + layout.scale_at),
               reinterpret_cast<f16_bits*>(head + layout.offset_at));
    RowsToTiles(rows, n, tiles);
    for (size_t tile = 0; tile < kPageTokens / 16; ++tile) {
      if (per_token) {
        TokenKeyTileCodes(layout, tiles + tile * 16 * n, tile, coders, keep + tile * 16, head);
        continue;
      }
      const size_t at = tile * 16 / static_cast<size_t>(group_size) * n;
      KeyTileCodes(layout, tiles + tile * 16 * n, tile, {coders.base + at, coders.inverse + at, coders.shift + at},
                   keep + tile * 16, head);
    }
  }
}

/// Codes of 16 channels from `c` on.
///   coders [128], those of the channels' group
HWY_INLINE void ValueTileCodes(const PageLayout& layout, const float* HWY_RESTRICT rows, size_t c, GroupCoders coders,
                               const TokenMask& exact, std::byte* HWY_RESTRICT head) {
  const TagF32 d;
  const TagI32 di;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const auto largest = hn::Set(d, static_cast<float>((1 << layout.recipe.bits) - 1));
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const CodeRows code_rows = CodeRows::Of(layout, head, c / 16, lane);
    for (size_t t0 = 0; t0 < kPageTokens; t0 += 32) {
      StoreCodes(code_rows, t0, hn::Set(di, -1), [&](size_t t) HWY_ATTR {
        if (exact.Test(static_cast<int>(t))) return hn::Zero(di);
        return GroupCode(hn::Load(d, rows + t * n + c + lane), hn::Set(d, coders.base[t]),
                         hn::Set(d, coders.inverse[t]), hn::Set(d, coders.shift[t]), largest);
      });
    }
  }
}

void SealAffineValues(const PageLayout& layout, const f16_bits* HWY_RESTRICT rows_f16, const TokenMask& exact,
                      std::byte* HWY_RESTRICT page) {
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const size_t group_size = static_cast<size_t>(layout.recipe.group_size);
  const size_t count = n / group_size * kPageTokens;
  Scratch scratch(n);
  float* rows = scratch.Take<float>(kPageTokens * n);
  float* low = scratch.Take<float>(count);
  float* high = scratch.Take<float>(count);
  const GroupCoders coders = {scratch.Take<float>(count), scratch.Take<float>(count), scratch.Take<float>(count)};

  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::byte* head = page + layout.heads_at + h * layout.head_bytes;
    LoadHead(rows_f16, layout.shape, h, layout.recipe.rotate, exact, nullptr, rows);
    RangesOfChannels(rows, n, group_size, low, high);  // exact tokens are rows of 0: parameters 0
    MakeGroups(layout.recipe, count, low, high, coders, reinterpret_cast<f16_bits*>(head + layout.scale_at),
               reinterpret_cast<f16_bits*>(head + layout.offset_at));
    for (size_t c = 0; c < n; c += 16) {
      const size_t at = c / group_size * kPageTokens;
      ValueTileCodes(layout, rows, c, {coders.base + at, coders.inverse + at, coders.shift + at}, exact, head);
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {

HWY_EXPORT(SealAffineKeys);
HWY_EXPORT(SealAffineValues);

void SealAffine(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, std::byte* page) {
  if (layout.side == Side::kKey) {
    HWY_DYNAMIC_DISPATCH(SealAffineKeys)(layout, rows, exact, page);
  } else {
    HWY_DYNAMIC_DISPATCH(SealAffineValues)(layout, rows, exact, page);
  }
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE
