#include "reference/half.h"

#include <cmath>
#include <limits>

namespace kvrazor::reference {
namespace {

constexpr double kLargestF16 = 65504.0;

/// The code in [0, last] whose value is nearest to x, ties to the even code; `decode` ascends.
template <class Decode>
uint8_t Nearest(double x, int last, Decode decode) {
  if (!(x > 0)) return 0;
  if (x >= decode(last)) return static_cast<uint8_t>(last);
  int best = 0;
  for (int code = 1; code <= last; ++code) {
    const double gain = std::abs(decode(best) - x) - std::abs(decode(code) - x);
    if (gain > 0 || (gain == 0 && code % 2 == 0)) best = code;
  }
  return static_cast<uint8_t>(best);
}

}  // namespace

double RoundHalfEven(double x) {
  if (!(std::abs(x) < 0x1p52)) return x;  // already an integer, or not finite
  const double down = std::floor(x);
  const double rest = x - down;  // exact
  if (rest > 0.5) return down + 1;
  if (rest < 0.5) return down;
  return std::fmod(down, 2.0) == 0 ? down : down + 1;
}

double DecodeF16(uint16_t bits) {
  const double sign = (bits >> 15) ? -1.0 : 1.0;
  const int exponent = (bits >> 10) % 32;
  const int mantissa = bits % 1024;
  if (exponent == 31)
    return mantissa ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  if (exponent == 0) return sign * std::ldexp(mantissa, -24);
  return sign * std::ldexp(1024 + mantissa, exponent - 25);
}

uint16_t EncodeF16(double x) {
  if (std::isnan(x)) return 0x7e00;
  const int sign = std::signbit(x) ? 0x8000 : 0;
  const double magnitude = std::abs(x);
  if (magnitude >= 65520.0)
    return static_cast<uint16_t>(sign | 0x7c00);  // half way from the largest value to 2^16, and above
  const int exponent = magnitude < 0x1p-14 ? -14 : std::ilogb(magnitude);
  const double steps = RoundHalfEven(std::ldexp(magnitude, 10 - exponent));  // 1024 .. 2048, or 0 .. 1024 below 2^-14
  return static_cast<uint16_t>(sign + (exponent + 14) * 1024 + static_cast<int>(steps));
}

uint16_t EncodeFiniteF16(double x) {
  if (x > kLargestF16) return EncodeF16(kLargestF16);
  if (x < -kLargestF16) return EncodeF16(-kLargestF16);
  return EncodeF16(x);
}

double DecodeE5M3(uint8_t code) { return DecodeF16(static_cast<uint16_t>(code * 128)); }

uint8_t EncodeE5M3(double x) {
  constexpr int kLast = 0xf7;  // the codes above are a binary16's infinity and NaN
  return Nearest(x, kLast, [](int code) { return DecodeE5M3(static_cast<uint8_t>(code)); });
}

double DecodeE3M5(uint8_t code, double base) {
  if (code == 0) return 0.0;
  return std::ldexp(base * (32 + code % 32), code / 32 - 12);
}

uint8_t EncodeE3M5(double x, double base) {
  if (!(base > 0)) return 0;
  return Nearest(x, 255, [base](int code) { return DecodeE3M5(static_cast<uint8_t>(code), base); });
}

}  // namespace kvrazor::reference
