#include "reference/seal_razor_key.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "reference/backend.h"
#include "reference/dequantize.h"
#include "reference/half.h"

namespace kvrazor::reference {
namespace {

Matrix TwoByTwo() {
  Matrix a(2);
  a(0, 0) = a(1, 1) = 2;
  a(0, 1) = a(1, 0) = 1;
  return a;
}

// A = G G^T with G = [[sqrt(3/2), 1/sqrt(2)], [0, sqrt(2)]], so W_01 = 1/2.
TEST(RazorKey, FeedbackByHand) {
  const auto [weights, pivots] = FactorMetric(TwoByTwo());
  EXPECT_NEAR(pivots[0], 1.5, 1e-15);
  EXPECT_NEAR(pivots[1], 2, 1e-15);
  EXPECT_NEAR(weights(0, 1), 0.5, 1e-15);
  EXPECT_EQ(weights(0, 0), 0);
  EXPECT_EQ(weights(1, 0), 0);
  // Channel 0: 0.9 -> level 0.5, error 0.4. Channel 1: -0.1 + 0.5 * 0.4 = 0.1 -> level 0.5; without feedback it would
  // be -0.5.
  EXPECT_EQ(FeedbackCodes({0.9, -0.1}, 1.0, weights, 2), (std::vector<int>{2, 2}));
  EXPECT_EQ(FeedbackCodes({0.9, -0.1}, 1.0, Matrix(2), 2), (std::vector<int>{2, 1}));
  // r^T A r = 1.62 - 0.18 + 0.02, r^T A (0.5, 0.5) = 1.2.
  EXPECT_NEAR(RazorGain({0.9, -0.1}, 1.0, {2, 2}, TwoByTwo(), 2), 1.46 / 1.2, 1e-14);
  EXPECT_EQ(RazorGain({9, 9}, 1.0, {2, 2}, TwoByTwo(), 2), 1.6);
  EXPECT_EQ(RazorGain({0.1, 0.1}, 1.0, {2, 2}, TwoByTwo(), 2), 0.7);
  EXPECT_EQ(RazorGain({0.1, 0.1}, 1.0, {1, 1}, TwoByTwo(), 2), 1.0);  // no overlap
}

// With w_c = (W_0c, .., W_{c-1,c}, 1, 0, ..): A = sum_c d_c w_c w_c^T, d_c > 0, peeled off from the last channel.
TEST(RazorKey, WeightsFactorTheMetric) {
  const int n = 64;
  std::mt19937 random(2);
  std::normal_distribution<double> normal;
  Matrix a(n);
  for (int s = 0; s < 40; ++s) {
    std::vector<double> q(n);
    for (double& v : q) v = normal(random);
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) a(i, j) += q[i] * q[j];
    }
  }
  for (int i = 0; i < n; ++i) a(i, i) += 8;
  const auto [w, pivots] = FactorMetric(a);
  for (int c = n - 1; c >= 0; --c) {
    const double d = a(c, c);
    EXPECT_NEAR(d, pivots[c], 1e-12 * d);
    const auto part = [c, &w = w](int i) { return i == c ? 1.0 : w(i, c); };
    for (int i = 0; i < n; ++i) {
      for (int j = 0; j < n; ++j) a(i, j) -= d * part(i) * part(j);
    }
  }
  for (const double rest : a.values) EXPECT_NEAR(rest, 0, 1e-11);
}

TEST(RazorKey, MetricAddsDamping) {
  SecondMoment moment({1, 32});
  std::vector<float> square(32 * 32);
  for (int i = 0; i < 32; ++i) square[i * 32 + i] = 5;
  square[32] = 3;
  moment.Add(0, square.data());
  moment.set_count(1);
  const Matrix a = SealMetric(&moment, 0, 32);
  EXPECT_DOUBLE_EQ(a(4, 4), 6);
  EXPECT_NEAR(a(0, 1), 3, 0x1p-16 * 5 + 1e-6);  // stored in 16 bits
  EXPECT_EQ(a(0, 1), a(1, 0));
  EXPECT_EQ(SealMetric(nullptr, 0, 32)(3, 3), 1);
  moment.set_count(0);
  EXPECT_EQ(SealMetric(&moment, 0, 32)(3, 3), 1);
}

TEST(RazorKey, ScaleSearchByHand) {
  // Multiples 1.5, 0.5, -0.5 of 2: c = 1 starts at 2 and finds it at once.
  const std::vector<ScaleCandidate> candidates = RazorScaleCandidates({3, 1, -1}, 2);
  ASSERT_EQ(candidates.size(), 10u);
  EXPECT_NEAR(candidates[0].scale, 2, 1e-15);
  EXPECT_NEAR(candidates[0].error, 0, 1e-28);
  EXPECT_EQ(RazorScaleCandidates({3, 1, -1}, 4).size(), 6u);
  // (3, 0.4): c = 1 starts at 2, levels 1.5 and 0.5: scale 4.7 / 2.5 = 1.88, error 9.16 - 4.7^2 / 2.5.
  const std::vector<ScaleCandidate> two = RazorScaleCandidates({3, 0.4}, 2);
  EXPECT_NEAR(two[0].scale, 1.88, 1e-14);
  EXPECT_NEAR(two[0].error, 9.16 - 4.7 * 4.7 / 2.5, 1e-14);
  EXPECT_TRUE(RazorScaleCandidates({0, 0}, 2).empty());
}

// One head of 64 channels (rotations by 8: exact), y_tc = mean_c + 2.5 (-1.5, -0.5, 0.5, 1.5)[(t + c) mod 4].
TEST(RazorKey, PageByHand) {
  const SideRecipe recipe = {.codec = Codec::kRazorKey, .bits = 2, .rotate = true};
  const PageLayout layout = MakePageLayout(recipe, Side::kKey, {1, 64});
  std::vector<f16_bits> rows(kPageTokens * 64);
  for (int t = 0; t < kPageTokens; ++t) {
    for (int i = 0; i < 64; ++i) {
      double k = 0;
      for (int c = 0; c < 64; ++c) {
        const double y = (c == 7 ? 100 : 0) + 2.5 * ((t + c) % 4 - 1.5);
        k += (__builtin_popcount(i & c) % 2 ? -y : y) / 8;
      }
      rows[t * 64 + i] = EncodeF16(k);
      ASSERT_EQ(DecodeF16(rows[t * 64 + i]), k);
    }
  }
  std::vector<std::byte> page(layout.page_bytes, std::byte{0xaa});
  ReferenceBackend().Seal(layout, rows.data(), {}, nullptr, page.data());
  EXPECT_EQ(GetHeadScalar(layout, page.data(), 0, 0), static_cast<float>(100.0 / 32767));
  EXPECT_EQ(GetHeadScalar(layout, page.data(), 0, 1), 2.0f);
  for (int c = 0; c < 64; ++c) EXPECT_EQ(GetU16(layout, page.data(), 0, layout.mean_at, c), c == 7 ? 32767 : 0);
  const PageSide side = {.sealed = page.data()};
  for (int t = 0; t < kPageTokens; ++t) {
    EXPECT_EQ(GetU8(layout, page.data(), 0, layout.scale_at, t), (7 << 5) + 8) << t;  // 2.5 = 2 (1 + 8 / 32)
    for (int c = 0; c < 64; ++c) EXPECT_EQ(GetCode(layout, page.data(), 0, t, c), (t + c) % 4) << t << " " << c;
    const std::vector<Sum> back = DequantizeHead(layout, side, t, 0);
    for (int c = 0; c < 64; ++c) EXPECT_NEAR(back[c].value, DecodeF16(rows[t * 64 + c]), 1e-5);
  }
}

// As above, but token t has (1 + t / 64) times the mean: over tokens 0 .. 127 that is 1 + 63.5 / 64 means of 64 on average. With
// one channel in the mean its factor is exactly what the token has of it over that average.
TEST(RazorKey, RankOneMeanByHand) {
  const SideRecipe recipe = {.codec = Codec::kRazorKey, .bits = 3, .rotate = true, .rank_one_mean = true};
  const PageLayout layout = MakePageLayout(recipe, Side::kKey, {1, 64});
  std::vector<f16_bits> rows(kPageTokens * 64);
  for (int t = 0; t < kPageTokens; ++t) {
    for (int i = 0; i < 64; ++i) {
      double k = 0;
      for (int c = 0; c < 64; ++c) {
        const double y = c == 7 ? 64 + t : (t + c) % 8 - 3.5;
        k += (__builtin_popcount(i & c) % 2 ? -y : y) / 8;
      }
      rows[t * 64 + i] = EncodeF16(k);
      ASSERT_EQ(DecodeF16(rows[t * 64 + i]), k);
    }
  }
  std::vector<std::byte> page(layout.page_bytes, std::byte{0xaa});
  ReferenceBackend().Seal(layout, rows.data(), {}, nullptr, page.data());
  EXPECT_EQ(GetHeadScalar(layout, page.data(), 0, 0), static_cast<float>(127.5 / 32767));
  for (int t = 0; t < kPageTokens; ++t) {
    const double factor = DecodeF16(GetU16(layout, page.data(), 0, layout.mean_factor_at, t));
    EXPECT_NEAR(factor, (64 + t) / 127.5, 1e-3 * factor) << t;
    for (int c = 0; c < 64; ++c) {
      if (c == 7) continue;
      EXPECT_EQ(GetCode(layout, page.data(), 0, t, c), (t + c) % 8) << t << " " << c;
    }
    // What the factor's rounding leaves of channel 7 is far below half a scale: one of the two middle codes.
    EXPECT_EQ((GetCode(layout, page.data(), 0, t, 7) + 1) / 2, 2) << t;
    const double base = GetHeadScalar(layout, page.data(), 0, 1);
    EXPECT_NEAR(DecodeE3M5(GetU8(layout, page.data(), 0, layout.scale_at, t), base), 1, 0.02);
  }
}

TEST(RazorKey, NothingToStore) {
  const SideRecipe recipe = {.codec = Codec::kRazorKey, .bits = 2, .rotate = true};
  const PageLayout layout = MakePageLayout(recipe, Side::kKey, {2, 32});
  std::vector<f16_bits> rows(kPageTokens * 64, EncodeF16(1));
  TokenMask all;
  for (int t = 0; t < kPageTokens; ++t) all.Set(t);
  std::vector<std::byte> page(layout.page_bytes, std::byte{0xaa});
  ReferenceBackend().Seal(layout, rows.data(), all, nullptr, page.data());
  for (const std::byte b : page) EXPECT_EQ(b, std::byte{0});
  // All tokens equal: the mean says it all.
  ReferenceBackend().Seal(layout, rows.data(), {}, nullptr, page.data());
  const PageSide side = {.sealed = page.data()};
  for (const Sum& x : DequantizeHead(layout, side, 9, 1)) EXPECT_NEAR(x.value, 1, 1e-6);
}

}  // namespace
}  // namespace kvrazor::reference
