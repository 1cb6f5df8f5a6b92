#include "reference/codes.h"

#include <cmath>
#include <cstring>

#include "reference/half.h"
#include "reference/rotate.h"

namespace kvrazor::reference {
namespace {

// A 64-byte row holds 16 lanes (tokens of keys, channels of values), a 32-bit word each. The elements of the other
// dimension are spread over the 4 bytes first, then over the fields of a byte from its low bits up.
struct Position {
  int64_t byte;
  int shift;
};

/// Where `bits` of a code lie among rows of that width that start at `at`.
Position Find(const PageLayout& layout, int head, int token, int channel, int64_t at, int bits) {
  const int lane = layout.side == Side::kKey ? token : channel;
  const int k = layout.side == Side::kKey ? channel : token;
  const int num_k = layout.side == Side::kKey ? layout.shape.head_dim : kPageTokens;
  const int fields_per_byte = 8 / bits;
  const int k_per_row = 4 * fields_per_byte;
  const int64_t row = int64_t{lane / 16} * (num_k / k_per_row) + k / k_per_row;
  const int within = k % k_per_row;
  const int64_t in_head = at + row * 64 + (lane % 16) * 4 + within % 4;
  return {layout.heads_at + head * layout.head_bytes + in_head, (within / 4) * bits};
}

template <class T>
T Get(const std::byte* from) {
  T value;
  std::memcpy(&value, from, sizeof(T));
  return value;
}

template <class T>
void Set(std::byte* to, T value) {
  std::memcpy(to, &value, sizeof(T));
}

int64_t At(const PageLayout& layout, int head, int64_t at) { return layout.heads_at + head * layout.head_bytes + at; }

}  // namespace

// 3-bit codes: the low two bits in rows of two, the high bit in rows of one.
int GetCode(const PageLayout& layout, const std::byte* page, int head, int token, int channel) {
  const auto field = [&](int64_t at, int bits) {
    const Position p = Find(layout, head, token, channel, at, bits);
    return (std::to_integer<int>(page[p.byte]) >> p.shift) % (1 << bits);
  };
  if (layout.recipe.bits != 3) return field(layout.codes_at, layout.recipe.bits);
  return field(layout.codes_at, 2) + 4 * field(layout.high_codes_at, 1);
}

void SetCode(const PageLayout& layout, std::byte* page, int head, int token, int channel, int code) {
  const auto set_field = [&](int64_t at, int bits, int value) {
    const Position p = Find(layout, head, token, channel, at, bits);
    const int mask = ((1 << bits) - 1) << p.shift;
    page[p.byte] = static_cast<std::byte>((std::to_integer<int>(page[p.byte]) & ~mask) | (value << p.shift));
  };
  if (layout.recipe.bits != 3) return set_field(layout.codes_at, layout.recipe.bits, code);
  set_field(layout.codes_at, 2, code % 4);
  set_field(layout.high_codes_at, 1, code / 4);
}

uint16_t GetU16(const PageLayout& layout, const std::byte* page, int head, int64_t at, int64_t index) {
  return Get<uint16_t>(page + At(layout, head, at) + index * 2);
}
void SetU16(const PageLayout& layout, std::byte* page, int head, int64_t at, int64_t index, uint16_t value) {
  Set(page + At(layout, head, at) + index * 2, value);
}
uint8_t GetU8(const PageLayout& layout, const std::byte* page, int head, int64_t at, int64_t index) {
  return Get<uint8_t>(page + At(layout, head, at) + index);
}
void SetU8(const PageLayout& layout, std::byte* page, int head, int64_t at, int64_t index, uint8_t value) {
  Set(page + At(layout, head, at) + index, value);
}

uint16_t GetTokenScale(const PageLayout& layout, const std::byte* page, int token) {
  return Get<uint16_t>(page + layout.token_scale_at + token * 2);
}
void SetTokenScale(const PageLayout& layout, std::byte* page, int token, uint16_t value) {
  Set(page + layout.token_scale_at + token * 2, value);
}

float GetHeadScalar(const PageLayout& layout, const std::byte* page, int head, int which) {
  return Get<float>(page + layout.head_scalars_at + (head * 2 + which) * 4);
}
void SetHeadScalar(const PageLayout& layout, std::byte* page, int head, int which, float value) {
  Set(page + layout.head_scalars_at + (head * 2 + which) * 4, value);
}

Rows::Rows(const PageLayout& layout, const f16_bits* rows)
    : shape_(layout.shape), values_(static_cast<size_t>(kPageTokens * layout.row_values())) {
  for (size_t i = 0; i < values_.size(); ++i) {
    const double x = DecodeF16(rows[i]);
    values_[i] = std::isfinite(x) ? x : 0.0;
  }
  if (!layout.recipe.rotate) return;
  for (size_t at = 0; at < values_.size(); at += static_cast<size_t>(shape_.head_dim))
    RotateHead(&values_[at], shape_.head_dim);
}

std::vector<double> Rows::Row(int token, int head) const {
  const auto begin = values_.begin() + static_cast<int64_t>(Index(token, head, 0));
  return {begin, begin + shape_.head_dim};
}

}  // namespace kvrazor::reference
