// Values of a page as the model would see them: decode one head into rows, undo the rotation, write f32.
//
//   affine        x = (scale * code + offset) * token_scale
//   razor keys    x = a_t * mean * mean_scale + s'_t * (code - L / 2), a_t = 1 without rank_one_mean
//   codebook      x = norm_t * (step of the code - middle)
//   razor values  x = n_t * (z_c s_c / 8 + s_c * (code - L / 2))
// Keys are decoded 16 tokens at a time (lanes = tokens, then a 16-row transpose), values row by row (lanes = channels).
#include "src/backends/cpu/dequantize.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kvrazor/error.h"
#include "src/backends/cpu/scratch.h"
#include "src/codecs/codebook.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/dequantize.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "src/backends/cpu/codes-inl.h"
#include "src/backends/cpu/head_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// One head's block and what its page says about it.
struct HeadView {
  const PageLayout& layout;
  const std::byte* page;
  const std::byte* head;
  const float* head_scalars;  // [2], razor keys

  template <typename T>
  const T* At(int64_t offset) const {
    return reinterpret_cast<const T*>(head + offset);
  }
  CodeRows Codes(size_t tile, size_t lane) const {
    return CodeRows::Of(layout, const_cast<std::byte*>(head), tile, lane);  // only read
  }
};

HWY_INLINE hn::Vec<TagF32> LoadHalf(const f16_bits* p) {
  const hn::Rebind<hwy::float16_t, TagF32> dh;
  return hn::PromoteTo(TagF32(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
}

/// x = ((code - origin) * code_factor_t * slope_c + intercept_factor_t * intercept_c) * factor_t for 16 tokens of keys,
/// [head_dim][16].
struct KeyTerms {
  float origin = 0;
  const float* slope;             // [head_dim]
  const float* intercept;         // [head_dim]
  const float* code_factor;       // [16]
  const float* intercept_factor;  // [16]
  const float* factor;            // [16]
};
HWY_INLINE void DecodeKeyTile(const HeadView& view, size_t index, const KeyTerms& terms, float* HWY_RESTRICT tile) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(view.layout.shape.head_dim);
  const auto origin = hn::Set(d, terms.origin);
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const auto on_code = hn::Load(d, terms.code_factor + lane);
    const auto on_intercept = hn::Load(d, terms.intercept_factor + lane);
    const auto on_all = hn::Load(d, terms.factor + lane);
    const CodeRows rows = view.Codes(index, lane);
    for (size_t c = 0; c < n; ++c) {
      const auto level = hn::Mul(hn::Sub(LoadCode(rows, c), origin), on_code);
      const auto rest = hn::Mul(on_intercept, hn::Set(d, terms.intercept[c]));
      hn::Store(hn::Mul(hn::MulAdd(level, hn::Set(d, terms.slope[c]), rest), on_all), d, tile + c * 16 + lane);
    }
  }
}

/// Buffers of one call.
struct Buffers {
  float* tile;              // [head_dim][16]
  float* rows;              // [16][head_dim]
  float* slope;             // [token groups][head_dim]; keys: one group
  float* intercept;         // likewise
  float* code_factor;       // [16]
  float* intercept_factor;  // [16]
  float* factor;            // [16]
};

/// x = scale * code + offset with parameters of each token, [head_dim][16].
HWY_INLINE void DecodeTokenKeyTile(const HeadView& view, size_t index, const float* HWY_RESTRICT token_factor,
                                   float* HWY_RESTRICT tile) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(view.layout.shape.head_dim);
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const CodeRows rows = view.Codes(index, lane);
    const auto factor = hn::Load(d, token_factor + lane);
    for (size_t c = 0; c < n; ++c) {
      const size_t group = c / static_cast<size_t>(view.layout.recipe.group_size) * kPageTokens + index * 16 + lane;
      const auto scale = LoadHalf(view.At<f16_bits>(view.layout.scale_at) + group);
      const auto offset = LoadHalf(view.At<f16_bits>(view.layout.offset_at) + group);
      hn::Store(hn::Mul(hn::MulAdd(LoadCode(rows, c), scale, offset), factor), d, tile + c * 16 + lane);
    }
  }
}

/// steps[code] - middle of a vector of codes.
HWY_INLINE hn::Vec<TagF32> LevelOf(hn::Vec<TagF32> code, const Codebook& book) {
  const TagF32 d;
  auto level = hn::Set(d, -book.middle);
  for (size_t k = 0; k + 1 < static_cast<size_t>(book.size()); ++k) {
    const auto gap = hn::Set(d, static_cast<float>(book.steps[k + 1] - book.steps[k]));
    level = hn::Add(level, hn::IfThenElseZero(hn::Gt(code, hn::Set(d, static_cast<float>(k))), gap));
  }
  return level;
}

/// x = norm * level, [head_dim][16].
HWY_INLINE void DecodeBookKeyTile(const HeadView& view, size_t index, float* HWY_RESTRICT tile) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(view.layout.shape.head_dim);
  const Codebook& book = GaussianCodebook(view.layout.recipe.bits);
  for (size_t lane = 0; lane < 16; lane += hn::Lanes(d)) {
    const CodeRows rows = view.Codes(index, lane);
    const auto norm = LoadHalf(view.At<f16_bits>(view.layout.norm_at) + index * 16 + lane);
    for (size_t c = 0; c < n; ++c) hn::Store(hn::Mul(LevelOf(LoadCode(rows, c), book), norm), d, tile + c * 16 + lane);
  }
}

/// Rows 16 tile .. 16 tile + 15 of a key head, still rotated, to buffers.rows.
HWY_INLINE void DecodeKeyRows(const HeadView& view, int tile, const Buffers& buffers) {
  const PageLayout& layout = view.layout;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const int first = 16 * tile;
  KeyTerms terms = {0, buffers.slope, buffers.intercept, buffers.code_factor, buffers.intercept_factor, buffers.factor};
  for (int i = 0; i < 16; ++i) buffers.code_factor[i] = buffers.intercept_factor[i] = buffers.factor[i] = 1.0f;
  if (layout.token_scale_at >= 0) {
    const f16_bits* norms = reinterpret_cast<const f16_bits*>(view.page + layout.token_scale_at);
    for (int i = 0; i < 16; ++i) buffers.factor[i] = F32FromF16(norms[first + i]);
  }
  if (layout.recipe.codec == Codec::kCodebook) {
    DecodeBookKeyTile(view, static_cast<size_t>(tile), buffers.tile);
    return TileToRows(buffers.tile, n, buffers.rows);
  }
  if (layout.recipe.codec == Codec::kAffine && layout.recipe.axis == Axis::kPerToken) {
    DecodeTokenKeyTile(view, static_cast<size_t>(tile), buffers.factor, buffers.tile);
    return TileToRows(buffers.tile, n, buffers.rows);
  }
  if (layout.recipe.codec == Codec::kAffine) {
    const int64_t group = first / layout.recipe.group_size;
    const f16_bits* scale = view.At<f16_bits>(layout.scale_at) + group * layout.shape.head_dim;
    const f16_bits* offset = view.At<f16_bits>(layout.offset_at) + group * layout.shape.head_dim;
    for (size_t c = 0; c < n; ++c) {
      buffers.slope[c] = F32FromF16(scale[c]);
      buffers.intercept[c] = F32FromF16(offset[c]);
    }
  } else {
    const int16_t* mean = view.At<int16_t>(layout.mean_at);
    const uint8_t* scale = view.At<uint8_t>(layout.scale_at);
    terms.origin = 0.5f * static_cast<float>((1 << layout.recipe.bits) - 1);
    for (size_t c = 0; c < n; ++c) {
      buffers.slope[c] = 1.0f;
      buffers.intercept[c] = static_cast<float>(mean[c]) * view.head_scalars[0];
    }
    for (int i = 0; i < 16; ++i) buffers.code_factor[i] = DecodeE3M5(scale[first + i], view.head_scalars[1]);
    for (int i = 0; layout.mean_factor_at >= 0 && i < 16; ++i)
      buffers.intercept_factor[i] = F32FromF16(view.At<f16_bits>(layout.mean_factor_at)[first + i]);
  }
  DecodeKeyTile(view, static_cast<size_t>(tile), terms, buffers.tile);
  TileToRows(buffers.tile, n, buffers.rows);
}

/// Row of token t of a value head, still rotated.
///   razor: slope, intercept hold s_c and the centre less L/2 s_c; affine: read here
HWY_INLINE void DecodeValueRow(const HeadView& view, int token, const Buffers& buffers, float* HWY_RESTRICT row) {
  const TagF32 d;
  const PageLayout& layout = view.layout;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const size_t t = static_cast<size_t>(token);
  const bool affine = layout.recipe.codec == Codec::kAffine;
  const size_t parameters = t / static_cast<size_t>(layout.tokens_per_group()) * n;  // razor
  for (size_t c = 0; c < n; c += hn::Lanes(d)) {
    const auto code = LoadCode(view.Codes(c / 16, c % 16), t);
    if (layout.recipe.codec == Codec::kCodebook) {
      const auto norm = hn::Set(d, F32FromF16(view.At<f16_bits>(layout.norm_at)[t]));
      hn::Store(hn::Mul(LevelOf(code, GaussianCodebook(layout.recipe.bits)), norm), d, row + c);
    } else if (affine) {
      const size_t group = c / static_cast<size_t>(layout.recipe.group_size) * kPageTokens + t;
      const auto scale = hn::Set(d, F32FromF16(view.At<f16_bits>(layout.scale_at)[group]));
      const auto offset = hn::Set(d, F32FromF16(view.At<f16_bits>(layout.offset_at)[group]));
      hn::Store(hn::MulAdd(code, scale, offset), d, row + c);
    } else {
      const auto norm = hn::Set(d, DecodeE5M3(view.At<uint8_t>(layout.norm_at)[t]));
      const auto x = hn::MulAdd(code, hn::Load(d, buffers.slope + parameters + c),
                                hn::Load(d, buffers.intercept + parameters + c));
      hn::Store(hn::Mul(x, norm), d, row + c);
    }
  }
}

/// Razor values: what all tokens of a head share.
HWY_INLINE void PrepareValueHead(const HeadView& view, const Buffers& buffers) {
  const PageLayout& layout = view.layout;
  const uint8_t* scale = view.At<uint8_t>(layout.scale_at);
  const int8_t* centre = view.At<int8_t>(layout.centre_at);
  const float half_levels = 0.5f * static_cast<float>((1 << layout.recipe.bits) - 1);
  const int num_groups = kPageTokens / layout.tokens_per_group();
  for (int c = 0; c < num_groups * layout.shape.head_dim; ++c) {
    const float s = DecodeE5M3(scale[c]);
    buffers.slope[c] = s;
    buffers.intercept[c] = (static_cast<float>(centre[c]) / 8 - half_levels) * s;
  }
}

/// Writes a decoded row, rotated back if the side was rotated. `row` is overwritten.
HWY_INLINE void WriteRow(float* HWY_RESTRICT row, size_t n, bool rotate, float* HWY_RESTRICT out) {
  const TagF32 d;
  if (rotate) {
    const auto scale = hn::Set(d, 1.0f / std::sqrt(static_cast<float>(n)));
    HadamardRow(row, n, [&](size_t i) HWY_ATTR { return hn::Mul(hn::Load(d, row + i), scale); });
  }
  for (size_t i = 0; i < n; i += hn::Lanes(d)) hn::StoreU(hn::Load(d, row + i), d, out + i);
}

/// Tokens [first, last) of a sealed page; exact tokens are left as they are in `out`.
void DequantizeSealed(const PageLayout& layout, const PageSide& side, int first, int last, float* HWY_RESTRICT out) {
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const size_t token_values = static_cast<size_t>(layout.row_values());
  const size_t groups = static_cast<size_t>(kPageTokens / layout.tokens_per_group());
  Scratch scratch(n);
  const Buffers buffers = {scratch.Take<float>(16 * n),     scratch.Take<float>(16 * n),
                           scratch.Take<float>(groups * n), scratch.Take<float>(groups * n),
                           scratch.Take<float>(16),         scratch.Take<float>(16),
                           scratch.Take<float>(16)};
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    const HeadView view = {layout, side.sealed, side.sealed + layout.heads_at + h * layout.head_bytes,
                           layout.head_scalars_at < 0
                               ? nullptr
                               : reinterpret_cast<const float*>(side.sealed + layout.head_scalars_at) + 2 * h};
    if (layout.recipe.codec == Codec::kRazorValue) PrepareValueHead(view, buffers);
    for (int tile = first / 16; tile * 16 < last; ++tile) {
      if (layout.side == Side::kKey) DecodeKeyRows(view, tile, buffers);
      for (int t = std::max(first, 16 * tile); t < std::min(last, 16 * tile + 16); ++t) {
        if (side.exact.Test(t)) continue;
        float* row = buffers.rows + static_cast<size_t>(t % 16) * n;
        if (layout.side == Side::kValue) DecodeValueRow(view, t, buffers, row);
        WriteRow(row, n, layout.recipe.rotate,
                 out + static_cast<size_t>(t - first) * token_values + static_cast<size_t>(h) * n);
      }
    }
  }
}

/// Rows in 16 bits as they are, infinities and NaN too. (Where Highway emulates the conversion it takes them for numbers.)
void PromoteRows(const f16_bits* HWY_RESTRICT rows, size_t count, float* HWY_RESTRICT out) {
  const TagF32 d;
  const hn::Rebind<uint16_t, TagF32> d16;
  const hn::Rebind<hwy::float16_t, TagF32> df16;
  const auto exponent = hn::Set(d16, uint16_t{0x7c00});
  size_t i = 0;
  for (; i + hn::Lanes(d) <= count; i += hn::Lanes(d)) {
    const auto bits = hn::LoadU(d16, rows + i);
    if (hn::AllFalse(d16, hn::Eq(hn::And(bits, exponent), exponent))) {
      hn::StoreU(hn::PromoteTo(d, hn::BitCast(df16, bits)), d, out + i);
    } else {
      for (size_t lane = 0; lane < hn::Lanes(d); ++lane) out[i + lane] = F32FromF16(rows[i + lane]);
    }
  }
  for (; i < count; ++i) out[i] = F32FromF16(rows[i]);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {

HWY_EXPORT(DequantizeSealed);
HWY_EXPORT(PromoteRows);

void Dequantize(const PageLayout& layout, const PageSide& page, int first, int last, float* out) {
  if (first < 0 || last < first || last > kPageTokens) {
    throw Error("dequantize: tokens " + std::to_string(first) + " to " + std::to_string(last) +
                " of a page; possible are 0 to " + std::to_string(kPageTokens) + ".");
  }
  const size_t token_values = static_cast<size_t>(layout.row_values());
  if (page.rows != nullptr) {
    const size_t count = static_cast<size_t>(last - first) * token_values;
    HWY_DYNAMIC_DISPATCH(PromoteRows)(page.rows + static_cast<size_t>(first) * token_values, count, out);
    return;
  }
  if (page.sealed == nullptr || layout.page_bytes == 0) {
    throw Error(
        "dequantize: the page has neither sealed bytes nor 16-bit rows; set PageSide::sealed (of a packed layout) or "
        "rows.");
  }
  if (page.exact.Any() && page.exact_rows == nullptr) {
    throw Error("dequantize: the page names tokens kept in 16 bits but no rows for them; set PageSide::exact_rows.");
  }
  HWY_DYNAMIC_DISPATCH(DequantizeSealed)(layout, page, first, last, out);
  size_t index = 0;  // of the exact row
  for (int t = 0; t < last; ++t) {
    if (!page.exact.Test(t)) continue;
    if (t >= first) {
      HWY_DYNAMIC_DISPATCH(PromoteRows)
      (page.exact_rows + index * token_values, token_values, out + static_cast<size_t>(t - first) * token_values);
    }
    ++index;
  }
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE
