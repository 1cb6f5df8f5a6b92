#include "src/core/half.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>
#include <random>
#include <vector>

#include "gtest/gtest.h"

namespace kvrazor {
namespace {

static_assert(F16FromF32(1.0f) == 0x3c00 && F32FromF16(0x3c00) == 1.0f);
static_assert(F16FromF32(-2.0f) == 0xc000 && F16FromF32(65504.0f) == 0x7bff);

constexpr int kInfinity = 0x7c00;  // also the number of finite patterns without sign

bool IsNan(int pattern) { return (pattern & 0x7fff) > kInfinity; }

/// The value of a pattern without sign, from the definition of binary16; what infinity's pattern would be worth if the
/// exponents went on, which is what rounding compares with.
double Magnitude(int pattern) {
  const int exponent = pattern >> 10;
  const int mantissa = pattern & 0x3ff;
  return exponent == 0 ? std::ldexp(mantissa, -24) : std::ldexp(1024 + mantissa, exponent - 25);
}

/// Nearest pattern, ties to even, by comparing exact doubles: a float and the midpoint of two halves are both exact there.
f16_bits NearestHalf(float x) {
  static const std::vector<double> midpoints = [] {
    std::vector<double> m(kInfinity);
    for (int p = 0; p < kInfinity; ++p) m[p] = (Magnitude(p) + Magnitude(p + 1)) / 2;
    return m;
  }();
  const double magnitude = std::abs(static_cast<double>(x));
  const auto first_above =
      std::lower_bound(midpoints.begin(), midpoints.end(), magnitude);  // first midpoint >= magnitude
  int pattern = static_cast<int>(first_above - midpoints.begin());
  const bool tie = first_above != midpoints.end() && *first_above == magnitude;
  if (tie && pattern % 2 == 1) ++pattern;
  return static_cast<f16_bits>(pattern | (std::signbit(x) ? 0x8000 : 0));
}

TEST(Half, DecodesEveryPattern) {
  for (int pattern = 0; pattern < 0x10000; ++pattern) {
    const float got = F32FromF16(static_cast<f16_bits>(pattern));
    if (IsNan(pattern)) {
      EXPECT_TRUE(std::isnan(got)) << pattern;
      continue;
    }
    const int magnitude = pattern & 0x7fff;
    const double want = magnitude == kInfinity ? std::numeric_limits<double>::infinity() : Magnitude(magnitude);
    EXPECT_EQ(std::abs(static_cast<double>(got)), want) << pattern;
    EXPECT_EQ(std::signbit(got), (pattern & 0x8000) != 0) << pattern;
  }
}

TEST(Half, RoundTripsEveryPattern) {
  for (int pattern = 0; pattern < 0x10000; ++pattern) {
    const f16_bits got = F16FromF32(F32FromF16(static_cast<f16_bits>(pattern)));
    if (IsNan(pattern)) {
      EXPECT_TRUE(IsNan(got)) << pattern;
    } else {
      EXPECT_EQ(got, pattern);
    }
  }
}

TEST(Half, RoundsEveryMidpointAndItsNeighboursToNearestEven) {
  for (int pattern = 0; pattern < kInfinity; ++pattern) {
    const auto midpoint = static_cast<float>((Magnitude(pattern) + Magnitude(pattern + 1)) / 2);
    const float infinity = std::numeric_limits<float>::infinity();
    for (const float x : {std::nextafter(midpoint, 0.0f), midpoint, std::nextafter(midpoint, infinity)}) {
      EXPECT_EQ(F16FromF32(x), NearestHalf(x)) << x;
      EXPECT_EQ(F16FromF32(-x), NearestHalf(-x)) << -x;
    }
  }
}

TEST(Half, RoundsRandomFloatsOfEveryExponent) {
  std::mt19937 random(1);
  for (int i = 0; i < 2'000'000; ++i) {
    const auto x = std::bit_cast<float>(static_cast<uint32_t>(random()));
    const f16_bits got = F16FromF32(x);
    if (std::isnan(x)) {
      ASSERT_TRUE(IsNan(got)) << std::bit_cast<uint32_t>(x);
    } else {
      ASSERT_EQ(got, NearestHalf(x)) << x;
    }
  }
}

TEST(Half, RoundsRandomFloatsOfHalfsOwnRange) {
  std::mt19937 random(2);
  std::uniform_int_distribution<uint32_t> exponent(127 - 26,
                                                   127 + 16);  // below the smallest subnormal to above infinity
  for (int i = 0; i < 2'000'000; ++i) {
    const uint32_t bits = static_cast<uint32_t>(random());
    const auto x = std::bit_cast<float>((bits & 0x807fffffu) | exponent(random) << 23);
    ASSERT_EQ(F16FromF32(x), NearestHalf(x)) << x;
  }
}

TEST(Half, EdgesOfTheRange) {
  const float infinity = std::numeric_limits<float>::infinity();
  EXPECT_EQ(F16FromF32(0.0f), 0);
  EXPECT_EQ(F16FromF32(-0.0f), 0x8000);
  EXPECT_EQ(F16FromF32(infinity), kInfinity);
  EXPECT_EQ(F16FromF32(-infinity), kInfinity | 0x8000);
  EXPECT_EQ(F16FromF32(std::nextafter(65520.0f, 0.0f)), 0x7bff);
  EXPECT_EQ(F16FromF32(65520.0f), kInfinity);  // halfway to 65536, which is even
  EXPECT_EQ(F16FromF32(std::numeric_limits<float>::max()), kInfinity);
  EXPECT_EQ(F16FromF32(0x1p-25f), 0);  // halfway between 0 and the smallest subnormal
  EXPECT_EQ(F16FromF32(std::nextafter(0x1p-25f, 1.0f)), 1);
  EXPECT_EQ(F16FromF32(std::numeric_limits<float>::denorm_min()), 0);
}

}  // namespace
}  // namespace kvrazor
