#include "src/cache/rows.h"

#include <bit>
#include <cmath>
#include <cstring>

namespace kvrazor {
namespace {

constexpr float kLargestF16 = 65504.0f;

float F32FromBF16(uint16_t x) { return std::bit_cast<float>(uint32_t{x} << 16); }

uint16_t BF16FromF32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);  // NaN stays NaN
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

f16_bits ClampedF16(float x) {
  if (std::fabs(x) > kLargestF16 && std::isfinite(x)) x = std::copysign(kLargestF16, x);
  return F16FromF32(x);
}

/// Calls fn(element pointer of (token, head), index of its row) for each head of tokens [first, last).
template <typename T, typename View, typename Fn>
void ForEachHead(const View& view, int64_t first, int64_t last, Fn fn) {
  T* data = static_cast<T*>(view.data);
  for (int64_t t = first; t < last; ++t) {
    for (int h = 0; h < view.num_heads; ++h) {
      fn(data + t * view.token_stride + h * view.head_stride, ((t - first) * view.num_heads + h) * view.head_dim);
    }
  }
}

}  // namespace

void RowsToF16(const TensorView& view, int64_t first, int64_t last, f16_bits* out) {
  const int n = view.head_dim;
  switch (view.dtype) {
    case Dtype::kF16:
      return ForEachHead<const f16_bits>(view, first, last, [&](const f16_bits* x, int64_t row) {
        std::memcpy(out + row, x, sizeof(f16_bits) * static_cast<size_t>(n));
      });
    case Dtype::kBF16:
      return ForEachHead<const uint16_t>(view, first, last, [&](const uint16_t* x, int64_t row) {
        for (int c = 0; c < n; ++c) out[row + c] = ClampedF16(F32FromBF16(x[c]));
      });
    case Dtype::kF32:
      return ForEachHead<const float>(view, first, last, [&](const float* x, int64_t row) {
        for (int c = 0; c < n; ++c) out[row + c] = ClampedF16(x[c]);
      });
  }
}

void RowsToF32(const TensorView& view, float* out) {
  const int n = view.head_dim;
  switch (view.dtype) {
    case Dtype::kF16:
      return ForEachHead<const f16_bits>(view, 0, view.num_tokens, [&](const f16_bits* x, int64_t row) {
        for (int c = 0; c < n; ++c) out[row + c] = F32FromF16(x[c]);
      });
    case Dtype::kBF16:
      return ForEachHead<const uint16_t>(view, 0, view.num_tokens, [&](const uint16_t* x, int64_t row) {
        for (int c = 0; c < n; ++c) out[row + c] = F32FromBF16(x[c]);
      });
    case Dtype::kF32:
      return ForEachHead<const float>(view, 0, view.num_tokens, [&](const float* x, int64_t row) {
        std::memcpy(out + row, x, sizeof(float) * static_cast<size_t>(n));
      });
  }
}

void RowsFromF32(const float* rows, const MutableTensorView& view) {
  const int n = view.head_dim;
  switch (view.dtype) {
    case Dtype::kF16:
      return ForEachHead<f16_bits>(view, 0, view.num_tokens, [&](f16_bits* x, int64_t row) {
        for (int c = 0; c < n; ++c) x[c] = F16FromF32(rows[row + c]);
      });
    case Dtype::kBF16:
      return ForEachHead<uint16_t>(view, 0, view.num_tokens, [&](uint16_t* x, int64_t row) {
        for (int c = 0; c < n; ++c) x[c] = BF16FromF32(rows[row + c]);
      });
    case Dtype::kF32:
      return ForEachHead<float>(view, 0, view.num_tokens, [&](float* x, int64_t row) {
        std::memcpy(x, rows + row, sizeof(float) * static_cast<size_t>(n));
      });
  }
}

}  // namespace kvrazor
