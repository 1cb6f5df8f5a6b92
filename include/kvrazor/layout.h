// Where every byte of a sealed page lies, computed from a recipe. One page holds kPageTokens tokens of one side (keys or
// values) of one layer, all kv heads.
//
//   page:  [token_scale f16 x 128]? [head scalars f32 x 2 x num_kv_heads]? [head 0] [head 1] ...      each part 64-byte aligned
//   head:  [codes] [high bits of 3-bit codes]? [parameters of the codec]
//
// Codes, 2 bits (4 bits: 2 classes instead of 4): rows of 64 bytes, lane-tile major.
//   keys    row (tt, cb): dword lane i = token 16 tt + i;    byte b, bits [2j, 2j+2) = channel 16 cb + 4 j + b
//   values  row (ct, tb): dword lane i = channel 16 ct + i;  byte b, bits [2j, 2j+2) = token   16 tb + 4 j + b
// so a row is 16 lanes x 16 elements of the summed dimension ("k"), four of them side by side as 8-bit dot products want.
// 3 bits: the two low bits of a code lie as 2-bit codes do; its high bit in rows of their own, one for two of those:
//   keys    row (tt, cb): dword lane i = token 16 tt + i;    byte b, bit j = channel 32 cb + 4 j + b      (values alike)
#pragma once

#include <cstdint>

#include "kvrazor/recipe.h"

namespace kvrazor {

enum class Side { kKey, kValue };

struct HeadShape {
  int num_kv_heads = 0;
  int head_dim = 0;
  bool operator==(const HeadShape&) const = default;
};

/// Bytes from the start of a sealed page (token_scale, head_scalars, heads) or of a head's block (the rest); -1: absent.
struct PageLayout {
  SideRecipe recipe;
  Side side = Side::kKey;
  HeadShape shape;

  int64_t token_scale_at = -1;   ///< f16 [128]
  int64_t head_scalars_at = -1;  ///< f32 [num_kv_heads][2]; razor keys: {mean_scale, token_scale_base}
  int64_t heads_at = 0;
  int64_t head_bytes = 0;
  int64_t page_bytes = 0;  ///< 0 with Codec::kF16: such pages are never sealed

  int64_t codes_at = 0;  ///< [lane tiles][k blocks][64]
  int64_t codes_bytes = 0;
  int64_t high_codes_at = -1;  ///< 3 bits: [lane tiles][k / 32][64], behind the codes
  int64_t scale_at =
      -1;  ///< affine per channel f16 [128 / group_size][head_dim]; per token f16 [head_dim / group_size][128];
           ///< razor keys u8 e3m5 [128] (token scale s'); razor values u8 e5m3 [128 / group_size][head_dim]
  int64_t offset_at = -1;       ///< affine: f16, shaped like scale (affine keys per token: like values)
  int64_t mean_at = -1;         ///< razor keys: int16 [head_dim], value = mean * mean_scale
  int64_t norm_at = -1;         ///< razor values: u8 e5m3 [128]; codebook: f16 [128]
  int64_t mean_factor_at = -1;  ///< razor keys with rank_one_mean: f16 [128], factor of the mean
  int64_t centre_at = -1;       ///< razor values: int8 [128 / group_size][head_dim], centre = z * scale / 8

  int lanes_per_tile() const { return 16; }
  /// Bits of a code in the rows at codes_at.
  int row_bits() const { return recipe.bits == 3 ? 2 : recipe.bits; }
  /// Elements of the summed dimension in one 64-byte row.
  int k_per_row() const { return 4 * (8 / row_bits()); }
  /// Tokens that share the parameters of a razor value channel.
  int tokens_per_group() const { return recipe.group_size > 0 ? recipe.group_size : kPageTokens; }
  /// Values along the lanes (tokens of keys, channels of values) and along the summed dimension.
  int num_lanes() const { return side == Side::kKey ? kPageTokens : shape.head_dim; }
  int num_k() const { return side == Side::kKey ? shape.head_dim : kPageTokens; }
  int64_t row_values() const { return int64_t{shape.num_kv_heads} * shape.head_dim; }
  /// A page in 16 bits: f16 [128][num_kv_heads][head_dim], as the model wrote it (not rotated).
  int64_t f16_page_bytes() const { return kPageTokens * row_values() * 2; }
  /// All stored bits over all values of a sealed page; 16 with Codec::kF16.
  double bits_per_value() const;
};

/// Throws Error if the shape does not suit the recipe (head_dim must be 32, 64, 128 or 256, at least group_size along channels).
PageLayout MakePageLayout(const SideRecipe& recipe, Side side, HeadShape shape);

/// Formats of the 8-bit parameters (docs/numerics.md). Encoding rounds to nearest, ties to even, and saturates.
///   e5m3: the 8 bits below the sign of an f16 (5 exponent bits, 3 mantissa bits); x >= 0.
///   e3m5: 0, or base * 2^((b >> 5) - 7) * (1 + (b & 31) / 32); base is a power of two.
uint8_t EncodeE5M3(float x);
float DecodeE5M3(uint8_t b);
uint8_t EncodeE3M5(float x, float base);
float DecodeE3M5(uint8_t b, float base);

}  // namespace kvrazor
