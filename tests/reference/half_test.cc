#include "reference/half.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

namespace kvrazor::reference {
namespace {

TEST(RoundHalfEven, TiesGoToTheEvenInteger) {
  EXPECT_EQ(RoundHalfEven(0.5), 0);
  EXPECT_EQ(RoundHalfEven(1.5), 2);
  EXPECT_EQ(RoundHalfEven(2.5), 2);
  EXPECT_EQ(RoundHalfEven(-0.5), 0);
  EXPECT_EQ(RoundHalfEven(-1.5), -2);
  EXPECT_EQ(RoundHalfEven(-2.5), -2);
  EXPECT_EQ(RoundHalfEven(0.49999999999999994), 0);
  EXPECT_EQ(RoundHalfEven(-1.2), -1);
  EXPECT_EQ(RoundHalfEven(0x1p60), 0x1p60);
}

TEST(F16, KnownValues) {
  EXPECT_EQ(EncodeF16(1.0), 0x3c00);
  EXPECT_EQ(EncodeF16(-2.0), 0xc000);
  EXPECT_EQ(EncodeF16(0.1), 0x2e66);
  EXPECT_EQ(EncodeF16(1.0 / 3), 0x3555);
  EXPECT_EQ(EncodeF16(65504), 0x7bff);
  EXPECT_EQ(EncodeF16(65519.9), 0x7bff);
  EXPECT_EQ(EncodeF16(65520), 0x7c00);
  EXPECT_EQ(EncodeFiniteF16(1e9), 0x7bff);
  EXPECT_EQ(EncodeFiniteF16(-1e9), 0xfbff);
  EXPECT_EQ(EncodeF16(0x1p-24), 0x0001);
  EXPECT_EQ(EncodeF16(0x1p-25), 0x0000);    // tie of 0 and the smallest value
  EXPECT_EQ(EncodeF16(0x1.8p-24), 0x0002);  // tie of 1 and 2 smallest
  EXPECT_EQ(EncodeF16(0x1p-14), 0x0400);
  EXPECT_EQ(EncodeF16(2049), EncodeF16(2048));
  EXPECT_EQ(EncodeF16(2051), EncodeF16(2052));
  EXPECT_EQ(EncodeF16(0x1.ffep0), 0x4000);  // carries into the exponent: tie of 0x1.ffcp0 and 2
}

TEST(F16, EveryFiniteCodeSurvives) {
  for (int bits = 0; bits < 0x10000; ++bits) {
    const double x = DecodeF16(static_cast<uint16_t>(bits));
    if (std::isnan(x)) continue;
    EXPECT_EQ(EncodeF16(x), bits);
  }
}

TEST(E5M3, KnownValues) {
  EXPECT_EQ(EncodeE5M3(1.0), 0x78);
  EXPECT_EQ(DecodeE5M3(0x78), 1.0);
  EXPECT_EQ(DecodeE5M3(0x79), 1.125);
  EXPECT_EQ(EncodeE5M3(1.0625), 0x78);  // ties go to the even code
  EXPECT_EQ(EncodeE5M3(1.1875), 0x7a);
  EXPECT_EQ(EncodeE5M3(1.9375), 0x80);  // carries into the exponent
  EXPECT_EQ(DecodeE5M3(0x01), 0x1p-17);
  EXPECT_EQ(EncodeE5M3(0x1p-18), 0x00);
  EXPECT_EQ(EncodeE5M3(0x1.1p-18), 0x01);
  EXPECT_EQ(DecodeE5M3(0xf7), 61440.0);
  EXPECT_EQ(EncodeE5M3(1e6), 0xf7);
  EXPECT_EQ(EncodeE5M3(-1), 0);
  for (int code = 0; code <= 0xf7; ++code) EXPECT_EQ(EncodeE5M3(DecodeE5M3(static_cast<uint8_t>(code))), code);
}

TEST(E3M5, KnownValues) {
  EXPECT_EQ(EncodeE3M5(4.0, 4.0), 7 << 5);
  EXPECT_EQ(EncodeE3M5(5.0, 4.0), (7 << 5) + 8);
  EXPECT_EQ(EncodeE3M5(2.0, 4.0), 6 << 5);
  EXPECT_EQ(EncodeE3M5(7.99, 4.0), 255);
  EXPECT_EQ(EncodeE3M5(100, 4.0), 255);
  EXPECT_EQ(DecodeE3M5(0, 4.0), 0.0);
  EXPECT_EQ(DecodeE3M5(1, 1.0), 33.0 / 32 / 128);
  EXPECT_EQ(EncodeE3M5(0x1p-7, 1.0), 1);           // 2^-7 itself is not a value
  EXPECT_EQ(EncodeE3M5(33.0 / 64 / 128, 1.0), 0);  // tie of 0 and the smallest value
  EXPECT_EQ(EncodeE3M5(std::nextafter(33.0 / 64 / 128, 1), 1.0), 1);
  EXPECT_EQ(EncodeE3M5(1.0, 0.0), 0);
  for (int code = 0; code < 256; ++code)
    EXPECT_EQ(EncodeE3M5(DecodeE3M5(static_cast<uint8_t>(code), 0x1p-9), 0x1p-9), code);
}

}  // namespace
}  // namespace kvrazor::reference
