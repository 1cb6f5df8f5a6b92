#include "kvrazor/layout.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "kvrazor/error.h"
#include "src/core/half.h"

namespace kvrazor {
namespace {

constexpr int64_t kAlign = 64;  // a code row, a cache line

int64_t Aligned(int64_t bytes) { return (bytes + kAlign - 1) / kAlign * kAlign; }

/// Hands out consecutive parts of a page or of a head's block.
class Cursor {
 public:
  int64_t Take(int64_t bytes) {
    const int64_t at = at_;
    at_ += bytes;
    return at;
  }
  int64_t end() const { return Aligned(at_); }

 private:
  int64_t at_ = 0;
};

void CheckShape(const SideRecipe& r, Side side, HeadShape s) {
  if (r.before_rope)
    throw Error(
        "layout: keys that are quantized before RoPE cannot be in packed pages: attention would have to do RoPE for "
        "every key at "
        "every step. Evaluate such a method in shadow mode (kvrazor eval kld --shadow).");
  const std::string what = side == Side::kKey ? "keys" : "values";
  if (s.num_kv_heads < 1 || s.num_kv_heads > 1024) {
    throw Error("layout: num_kv_heads=" + std::to_string(s.num_kv_heads) + " for " + what +
                "; possible are 1 to 1024.");
  }
  if (r.codec == Codec::kF16) {
    if (s.head_dim < 1 || s.head_dim > 4096) {
      throw Error("layout: head_dim=" + std::to_string(s.head_dim) + " for " + what +
                  "; possible are 1 to 4096 in 16 bits.");
    }
    return;
  }
  if (s.head_dim != 32 && s.head_dim != 64 && s.head_dim != 128 && s.head_dim != 256) {
    throw Error("layout: head_dim=" + std::to_string(s.head_dim) + " for packed " + what +
                "; possible are 32, 64, 128, 256. Keep such a layer in 16 bits (recipe f16).");
  }
  if (r.codec == Codec::kAffine && r.axis == Axis::kPerToken && r.group_size > s.head_dim) {
    throw Error("layout: group_size=" + std::to_string(r.group_size) + " along channels for " + what +
                " with head_dim=" + std::to_string(s.head_dim) + "; possible are divisors of head_dim, for example g" +
                std::to_string(s.head_dim) + ".");
  }
}

}  // namespace

double PageLayout::bits_per_value() const {
  if (recipe.codec == Codec::kF16) return 16.0;
  return 8.0 * static_cast<double>(page_bytes) / static_cast<double>(kPageTokens * row_values());
}

PageLayout MakePageLayout(const SideRecipe& recipe, Side side, HeadShape shape) {
  CheckShape(recipe, side, shape);
  PageLayout p;
  p.recipe = recipe;
  p.side = side;
  p.shape = shape;
  if (recipe.codec == Codec::kF16) return p;

  const int64_t dim = shape.head_dim;
  Cursor head;
  p.codes_bytes = kPageTokens * dim * p.row_bits() / 8;
  p.codes_at = head.Take(p.codes_bytes);
  if (recipe.bits == 3) p.high_codes_at = head.Take(kPageTokens * dim / 8);
  switch (recipe.codec) {
    case Codec::kF16: break;
    case Codec::kAffine: {
      const int64_t groups = kPageTokens * dim / recipe.group_size;  // per channel: 128/G * D; per token: D/G * 128
      p.scale_at = head.Take(groups * 2);
      p.offset_at = head.Take(groups * 2);
      break;
    }
    case Codec::kCodebook: p.norm_at = head.Take(kPageTokens * 2); break;
    case Codec::kRazorKey:
      p.mean_at = head.Take(dim * 2);
      p.scale_at = head.Take(kPageTokens);
      if (recipe.rank_one_mean) p.mean_factor_at = head.Take(kPageTokens * 2);
      break;
    case Codec::kRazorValue: {
      const int64_t groups = kPageTokens / p.tokens_per_group();
      p.norm_at = head.Take(kPageTokens);
      p.scale_at = head.Take(groups * dim);
      p.centre_at = head.Take(groups * dim);
      break;
    }
  }
  p.head_bytes = head.end();

  Cursor page;
  if (recipe.token_scale != TokenScale::kNone) p.token_scale_at = page.Take(Aligned(kPageTokens * 2));
  if (recipe.codec == Codec::kRazorKey) p.head_scalars_at = page.Take(Aligned(int64_t{shape.num_kv_heads} * 2 * 4));
  p.heads_at = page.Take(p.head_bytes * shape.num_kv_heads);
  p.page_bytes = page.end();
  return p;
}

uint8_t EncodeE5M3(float x) {
  if (!(x > 0)) return 0;
  // Round the value itself to 3 mantissa bits (not the f16 of it: that would round twice). The grid is f16's with 7 bits less.
  const float largest = DecodeE5M3(0xf7);
  if (x >= largest) return 0xf7;  // 0xf8 and above would be f16's infinity and NaN
  int exponent = 0;
  std::frexp(x, &exponent);                                  // x in [2^(e-1), 2^e)
  const int step = std::max(exponent - 1, -14) - 3;          // weight of the last mantissa bit; subnormals share -14
  const float units = std::nearbyint(std::ldexp(x, -step));  // 8..16, or 0..8 for subnormals
  return static_cast<uint8_t>(F16FromF32(std::ldexp(units, step)) >> 7);
}

float DecodeE5M3(uint8_t b) { return F32FromF16(static_cast<f16_bits>(b << 7)); }

uint8_t EncodeE3M5(float x, float base) {
  if (!(x > 0) || !(base > 0)) return 0;
  const float r = x / base;  // exact: base is a power of two
  if (r >= DecodeE3M5(0xff, 1.0f)) return 0xff;
  int exponent = 0;
  std::frexp(r, &exponent);
  const int octave = std::max(exponent - 1, -7);
  const int units =
      static_cast<int>(std::nearbyint(std::ldexp(r, 5 - octave)));  // 32..64; below 32 only under the range
  if (units < 32)
    return r > 0.5f * DecodeE3M5(1, 1.0f) ? 1 : 0;  // below the range: the nearer of 0 and the smallest value
  const int code = ((octave + 7) << 5) + (units - 32);
  return static_cast<uint8_t>(code == 0 ? 1 : code);  // 2^-7 itself is not a value: code 0 means 0
}

float DecodeE3M5(uint8_t b, float base) {
  if (b == 0) return 0.0f;
  return base * std::ldexp(1.0f + static_cast<float>(b & 31) / 32.0f, (b >> 5) - 7);
}

}  // namespace kvrazor
