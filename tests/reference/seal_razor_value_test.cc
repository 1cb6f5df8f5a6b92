#include "reference/seal_razor_value.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <vector>

#include "reference/backend.h"
#include "reference/dequantize.h"
#include "reference/half.h"

namespace kvrazor::reference {
namespace {

TEST(RazorValue, LineByHand) {
  // Codes 0 1 2 3 of scale 1, centre 4.5: found exactly.
  const std::vector<LineCandidate> exact = RazorLineCandidates({3, 4, 5, 6}, 2);
  EXPECT_NEAR(exact[0].line.scale, 1, 1e-15);
  EXPECT_NEAR(exact[0].line.centre, 4.5, 1e-15);
  EXPECT_NEAR(exact[0].error, 0, 1e-28);
  // (0, 0, 0.2, 3): codes 0 0 0 3; the mean of the lower three is 1/15, so scale (3 - 1/15) / 3, line through (0,
  // 1/15).
  const std::vector<LineCandidate> fit = RazorLineCandidates({0, 0, 0.2, 3}, 2);
  EXPECT_NEAR(fit[0].line.scale, (3 - 1.0 / 15) / 3, 1e-14);
  EXPECT_NEAR(fit[0].line.centre, 1.0 / 15 + 1.5 * (3 - 1.0 / 15) / 3, 1e-14);
  EXPECT_NEAR(fit[0].error, 2.0 / 225 + 4.0 / 225, 1e-14);
}

TEST(RazorValue, FlatLinesStayWithinReachOfTheCentre) {
  const Line steep = WithinReach({1, 13});
  EXPECT_EQ(steep.scale, 1);
  EXPECT_EQ(steep.centre, 13);
  const Line flat = WithinReach({0, -28});
  EXPECT_EQ(flat.scale, 2);
  EXPECT_EQ(flat.centre, -27);
  const Line zero = WithinReach({0, 0});
  EXPECT_EQ(zero.scale, 0);
}

class RazorValuePage : public testing::Test {
 protected:
  static constexpr int kDim = 64;  // rotations divide by 8: exact
  RazorValuePage()
      : layout_(MakePageLayout({.codec = Codec::kRazorValue, .bits = 2, .rotate = true}, Side::kValue, {1, kDim})) {}

  /// Seals rows whose rotation is y(token, channel).
  template <class Y>
  void Seal(Y y) {
    rows_.resize(kPageTokens * kDim);
    for (int t = 0; t < kPageTokens; ++t) {
      for (int i = 0; i < kDim; ++i) {
        double v = 0;
        for (int c = 0; c < kDim; ++c) v += (__builtin_popcount(i & c) % 2 ? -y(t, c) : y(t, c)) / 8;
        rows_[t * kDim + i] = EncodeF16(v);
        ASSERT_EQ(DecodeF16(rows_[t * kDim + i]), v);
      }
    }
    page_.assign(layout_.page_bytes, std::byte{0xaa});
    ReferenceBackend().Seal(layout_, rows_.data(), exact_, nullptr, page_.data());
  }

  PageLayout layout_;
  TokenMask exact_;
  std::vector<f16_bits> rows_;
  std::vector<std::byte> page_;
};

// Signs: norms 8 2^(t mod 3), u = +-1/8; range 1/4, scale 1/12 = 1.33 / 16 -> 1.375 / 16, codes 0 and 3.
TEST_F(RazorValuePage, SignsByHand) {
  const auto sign = [](int t, int c) { return (t * 37 + c * 11) / 3 % 2 == 0 ? -1 : 1; };
  exact_.Set(3);
  Seal([&](int t, int c) { return t == 3 ? (c == 5 ? 800.0 : 0.0) : sign(t, c) * std::ldexp(1.0, t % 3); });
  for (int c = 0; c < kDim; ++c) {
    EXPECT_EQ(GetU8(layout_, page_.data(), 0, layout_.scale_at, c), 11 * 8 + 3) << c;
    EXPECT_EQ(static_cast<int8_t>(GetU8(layout_, page_.data(), 0, layout_.centre_at, c)), 0) << c;
  }
  for (int t = 0; t < kPageTokens; ++t) {
    EXPECT_EQ(GetU8(layout_, page_.data(), 0, layout_.norm_at, t), t == 3 ? 0 : EncodeE5M3(std::ldexp(8.0, t % 3)))
        << t;
    for (int c = 0; c < kDim; ++c) {
      EXPECT_EQ(GetCode(layout_, page_.data(), 0, t, c), t == 3 ? 0 : sign(t, c) < 0 ? 0 : 3) << t << " " << c;
    }
  }
}

// Groups of 32 tokens have scales of their own: tokens 32 .. 63 are a hundred times as spread out relative to their channel 0.
TEST(RazorValueGroups, ByHand) {
  const PageLayout layout =
      MakePageLayout({.codec = Codec::kRazorValue, .bits = 2, .group_size = 32, .rotate = true}, Side::kValue, {1, 64});
  EXPECT_EQ(layout.bits_per_value(), 2 + 16.0 / 32 + 8.0 / 64);
  const auto sign = [](int t, int c) { return (t * 37 + c * 11) / 3 % 2 == 0 ? -1 : 1; };
  // |y| = 8 everywhere; in group 1 channel 0 alone holds nearly all of it.
  const auto y = [&](int t, int c) {
    if (t / 32 != 1) return 1.0 * sign(t, c);
    return c == 0 ? 8.0 * sign(t, c) : 0.0;
  };
  std::vector<f16_bits> rows(kPageTokens * 64);
  for (int t = 0; t < kPageTokens; ++t) {
    for (int i = 0; i < 64; ++i) {
      double v = 0;
      for (int c = 0; c < 64; ++c) v += (__builtin_popcount(i & c) % 2 ? -y(t, c) : y(t, c)) / 8;
      rows[t * 64 + i] = EncodeF16(v);
      ASSERT_EQ(DecodeF16(rows[t * 64 + i]), v);
    }
  }
  std::vector<std::byte> page(layout.page_bytes, std::byte{0xaa});
  ReferenceBackend().Seal(layout, rows.data(), {}, nullptr, page.data());
  for (int g = 0; g < 4; ++g) {
    for (int c = 0; c < 64; ++c) {
      // Ranges 1/4 (scale 1/12 -> 1.375 / 16), in group 1 range 2 of channel 0 (scale 2/3 -> 1.375 / 2) and nothing else.
      const int want = g != 1 ? 11 * 8 + 3 : c == 0 ? 14 * 8 + 3 : 0;
      EXPECT_EQ(GetU8(layout, page.data(), 0, layout.scale_at, g * 64 + c), want) << g << " " << c;
      EXPECT_EQ(GetU8(layout, page.data(), 0, layout.centre_at, g * 64 + c), 0) << g << " " << c;
    }
  }
  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < 64; ++c) {
      const int want = y(t, c) == 0 ? 0 : y(t, c) < 0 ? 0 : 3;
      EXPECT_EQ(GetCode(layout, page.data(), 0, t, c), want) << t << " " << c;
    }
  }
}

// 128 equal tokens, as the first layer sees of a run of one token. A channel errs by at most |u| (1/224 + 1/448): the
// int8 centre and the rounding of the half step; the norm
// is 64.1, stored as 64.
TEST_F(RazorValuePage, EqualTokensAreKept) {
  const auto y = [](int, int c) { return c % 4 == 0 ? 16.0 : c == 1 ? 4.0 : 0.0; };
  Seal(y);
  const PageSide side = {.sealed = page_.data()};
  double worst = 0;
  for (int t = 0; t < kPageTokens; ++t) {
    const std::vector<Sum> back = DequantizeHead(layout_, side, t, 0);
    double error = 0;
    for (int c = 0; c < kDim; ++c) {
      const double e = back[c].value - DecodeF16(rows_[t * kDim + c]);
      error += e * e;
    }
    worst = std::max(worst, std::sqrt(error));
  }
  EXPECT_LE(worst, 64.2 / 149);
}

TEST_F(RazorValuePage, ZeroTokens) {
  Seal([](int, int) { return 0.0; });
  for (const std::byte b : page_) EXPECT_EQ(b, std::byte{0});
}

}  // namespace
}  // namespace kvrazor::reference
