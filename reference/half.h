// The number formats of a page in float64, written from their definitions: value = significand * 2^exponent, nearest
// value, ties to the even code. No bit tricks and nothing shared with src/.
#pragma once

#include <cstdint>

namespace kvrazor::reference {

/// Nearest integer, ties to even, whatever the rounding mode of the machine.
double RoundHalfEven(double x);

/// IEEE binary16.
double DecodeF16(uint16_t bits);
uint16_t EncodeF16(double x);  ///< overflow gives infinity
uint16_t EncodeFiniteF16(
    double x);  ///< overflow gives the largest finite value: parameters of a page are always finite

/// The 8 bits below the sign of a binary16: 5 exponent bits, 3 mantissa bits. Encoding saturates at 61440, x <= 0
/// gives 0.
double DecodeE5M3(uint8_t code);
uint8_t EncodeE5M3(double x);

/// 0, or base * 2^((code >> 5) - 7) * (1 + (code & 31) / 32). Encoding saturates at code 255, x <= 0 gives 0.
double DecodeE3M5(uint8_t code, double base);
uint8_t EncodeE3M5(double x, double base);

}  // namespace kvrazor::reference
