// The 8- and 16-bit formats of src/ against their definitions, and merging of partial results.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kvrazor/layout.h"
#include "reference/half.h"
#include "reference/merge.h"
#include "src/core/half.h"
#include "src/ops/attend.h"
#include "tests/conformance/cases.h"

namespace kvrazor::conformance {
namespace {

/// Every code's value, its neighbours in f32, the ties between codes and their neighbours.
template <class Decode>
std::vector<float> Interesting(Decode decode, int num_codes) {
  std::vector<float> all;
  const auto add = [&](double x) {
    const float f = static_cast<float>(x);
    for (const float y : {std::nextafter(f, 0.0f), f, std::nextafter(f, 1e30f)}) all.insert(all.end(), {y, -y});
  };
  for (int code = 0; code < num_codes; ++code) {
    add(decode(code));
    if (code + 1 < num_codes) add((decode(code) + decode(code + 1)) / 2);
  }
  for (const double x : {0.0, 1e-30, 65519.0, 65520.0, 1e6, 1e30}) add(x);
  return all;
}

TEST(Formats, F16) {
  for (const float x :
       Interesting([](int code) { return reference::DecodeF16(static_cast<uint16_t>(code)); }, 0x7c00)) {
    ASSERT_EQ(F16FromF32(x), reference::EncodeF16(x)) << x;
  }
  for (int bits = 0; bits < 0x10000; ++bits) {
    const double want = reference::DecodeF16(static_cast<uint16_t>(bits));
    const float got = F32FromF16(static_cast<f16_bits>(bits));
    if (std::isnan(want))
      ASSERT_TRUE(std::isnan(got));
    else
      ASSERT_EQ(got, want);
  }
}

TEST(Formats, E5M3) {
  for (const float x : Interesting([](int code) { return reference::DecodeE5M3(static_cast<uint8_t>(code)); }, 0xf8)) {
    ASSERT_EQ(EncodeE5M3(x), reference::EncodeE5M3(x)) << x;
  }
  for (int code = 0; code < 0xf8; ++code)
    ASSERT_EQ(DecodeE5M3(static_cast<uint8_t>(code)), reference::DecodeE5M3(static_cast<uint8_t>(code)));
}

TEST(Formats, E3M5) {
  for (const float base : {0x1p-20f, 1.0f, 0x1p9f}) {
    for (const float x :
         Interesting([&](int code) { return reference::DecodeE3M5(static_cast<uint8_t>(code), base); }, 256)) {
      ASSERT_EQ(EncodeE3M5(x, base), reference::EncodeE3M5(x, base)) << x << " over " << base;
    }
    for (int code = 0; code < 256; ++code) {
      ASSERT_EQ(DecodeE3M5(static_cast<uint8_t>(code), base), reference::DecodeE3M5(static_cast<uint8_t>(code), base));
    }
  }
  EXPECT_EQ(EncodeE3M5(1.0f, 0.0f), 0);
}

// Shares e^(lse - top) err by the rounding of lse - top and of the exponential; then three operations a value.
TEST(MergePartials, MatchesFloat64) {
  std::mt19937 random(8);
  std::normal_distribution<float> normal;
  const float none = -std::numeric_limits<float>::infinity();
  for (const int dim : {1, 32, 100, 256}) {
    for (const float lse_a : {none, -40.0f, 0.0f, 3.25f, 500.0f}) {
      for (const float gap : {none, -200.0f, -20.0f, -1.5f, 0.0f, 0.75f, 9.0f, 88.0f}) {
        const float lse_b = gap == none ? none : (lse_a == none ? 0 : lse_a) + gap;
        std::vector<float> a(dim), b(dim);
        for (float& x : a) x = lse_a == none ? 0 : normal(random);
        for (float& x : b) x = lse_b == none ? 0 : normal(random);
        const reference::Partial want = reference::Merge({{a.begin(), a.end()}, lse_a}, {{b.begin(), b.end()}, lse_b});
        const std::vector<float> was = a;
        float lse = lse_a;
        MergePartials(a.data(), lse, b.data(), lse_b, dim);
        const double apart = lse_a == none || lse_b == none ? 0 : std::abs(double{lse_a} - lse_b);
        const double exponential = Gamma(4) + Gamma(1) * apart * std::exp(-apart);
        for (int c = 0; c < dim; ++c) {
          ASSERT_NEAR(a[c], want.out[c], (2 * exponential + Gamma(6)) * (std::abs(was[c]) + std::abs(b[c])));
        }
        if (want.lse == none)
          EXPECT_EQ(lse, none);
        else
          ASSERT_NEAR(lse, want.lse, Gamma(2) * std::abs(want.lse) + exponential + Gamma(4));
      }
    }
  }
}

}  // namespace
}  // namespace kvrazor::conformance
