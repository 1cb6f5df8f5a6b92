// IEEE binary16 as raw bits, without depending on a compiler's half type.
#pragma once

#include <bit>
#include <cstdint>

namespace kvrazor {

using f16_bits = uint16_t;

/// Round to nearest, ties to even; overflow gives infinity, NaN stays NaN.
constexpr f16_bits F16FromF32(float x) {
  const uint32_t bits = std::bit_cast<uint32_t>(x);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  const uint32_t mag = bits & 0x7fffffffu;
  if (mag >= 0x7f800000u) return static_cast<f16_bits>(sign | (mag > 0x7f800000u ? 0x7e00u : 0x7c00u));
  if (mag >= 0x477ff000u) return static_cast<f16_bits>(sign | 0x7c00u);  // rounds to 65536 or more
  if (mag < 0x38800000u) {  // below the smallest normal: adding 0.5 aligns the f16 subnormal grid with f32's last bit
    const float aligned = std::bit_cast<float>(mag) + 0.5f;
    return static_cast<f16_bits>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  }
  const uint32_t rounded = mag + 0xfffu + ((mag >> 13) & 1u);
  return static_cast<f16_bits>(sign | ((rounded - 0x38000000u) >> 13));
}

constexpr float F32FromF16(f16_bits h) {
  const uint32_t sign = static_cast<uint32_t>(h & 0x8000u) << 16;
  const uint32_t exponent = (h >> 10) & 0x1fu;
  const uint32_t mantissa = h & 0x3ffu;
  if (exponent == 0x1fu) return std::bit_cast<float>(sign | 0x7f800000u | (mantissa << 13));
  if (exponent == 0) {
    const float x = static_cast<float>(mantissa) * 0x1p-24f;
    return sign ? -x : x;
  }
  return std::bit_cast<float>(sign | ((exponent + 112u) << 23) | (mantissa << 13));
}

}  // namespace kvrazor
