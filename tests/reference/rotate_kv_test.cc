// Worked by hand from the definition.
#include "reference/rotate_kv.h"

#include <gtest/gtest.h>

#include <cmath>
#include <numbers>

namespace kvrazor::reference {
namespace {

void ExpectNear(const std::vector<double>& got, const std::vector<double>& want, double tolerance) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], tolerance) << i;
}

TEST(RotateKv, HeadsAreRotatedTogether) {
  // Two heads of four: a single value spreads over both.
  const double even = 1 / std::sqrt(8.0);
  ExpectNear(RotateRuns({1, 0, 0, 0, 0, 0, 0, 0}, 8), std::vector<double>(8, even), 1e-15);
  ExpectNear(RotateRuns({1, 0, 0, 0, 0, 0, 0, 0}, 4), {0.5, 0.5, 0.5, 0.5, 0, 0, 0, 0}, 1e-15);
  ExpectNear(RotateRuns({1, 2, 3, 4}, 4), {5, -1, -2, 0}, 1e-15);
  ExpectNear(RotateRuns(RotateRuns({3, -1, 4, 1, -5, 9, 2, 6}, 8), 8), {3, -1, 4, 1, -5, 9, 2, 6}, 1e-14);
}

TEST(RotateKv, OrderIsThatOfSignedSums) {
  EXPECT_EQ(RotateKvOrder({5, -1, -2, 0}), (std::vector<int>{2, 1, 3, 0}));
  EXPECT_EQ(RotateKvOrder({1, 0, 1, 0}), (std::vector<int>{1, 3, 0, 2}));
}

// Key (1, 2, 3, 4): rotated (5, -1, -2, 0), in order (-2, -1, 0, 5). Range times 0.8: -1.6 to 4, scale 5.6 / 3 = 1.8667, zero point
// round(1.6 / 1.8667) = 1. Codes round(x / scale) + 1: -1 + 1, -1 + 1, 0 + 1, 3 + 1 -> 0, 0, 1, 3. Back (-1.8667, -1.8667, 0, 3.7333),
// unordered (3.7333, -1.8667, -1.8667, 0), rotated (0, 1.8667, 1.8667, 3.7333).
TEST(RotateKv, OneTokenByHand) {
  const SideRecipe recipe = {.codec = Codec::kAffine,
                             .bits = 2,
                             .group_size = 4,
                             .zero_point = ZeroPoint::kRounded,
                             .clip_percent = 80,
                             .before_rope = true};
  const double scale = 5.6 / 3;
  const RotateKvKey got = QuantizeRotateKv({1, 2, 3, 4}, 4, {2, 1, 3, 0}, recipe);
  ExpectNear(got.key, {0, scale, scale, 2 * scale}, 2e-3);  // f16 of the parameters
  EXPECT_EQ(got.slack_square, 0);

  // The second value, -1 / 1.8667 + 1 = 0.464, lies nearest to the border between two codes.
  EXPECT_NEAR(QuantizeRotateKv({1, 2, 3, 4}, 4, {2, 1, 3, 0}, recipe, 0.03).slack_square, scale * scale, 1e-2);

  // Groups of two, (5, -2) and (-1, 0).
  //   -1.6 to 4: scale 1.8667, zero point 1, codes 3 and 0 -> 3.7333 and -1.8667
  //   -0.8 to 0: scale 0.2667, zero point 3, codes 0 (of -4 + 3) and 3 -> -0.8 and 0
  SideRecipe pairs = recipe;
  pairs.group_size = 2;
  ExpectNear(QuantizeRotateKv({1, 2, 3, 4}, 4, {0, 2, 1, 3}, pairs).key, {1.6 / 3, 4.0 / 3, 2.4, 3.2}, 4e-3);
}

TEST(RotateKv, RopeTurnsPairs) {
  std::vector<double> x = {1, 0, 0, 0};
  RopeHead(x.data(), 4, std::numbers::pi / 2, 100, /*neighbours=*/false);
  ExpectNear(x, {0, 0, 1, 0}, 1e-15);
  x = {0, 0, 1, 0};
  RopeHead(x.data(), 4, 10 * std::numbers::pi / 2, 100, /*neighbours=*/true);  // the second pair turns ten times slower
  ExpectNear(x, {0, 0, 0, 1}, 1e-14);
}

TEST(RotateKv, TokensOfTheLargestEntries) {
  const std::vector<double> x = {1, -9, 2, 3, -4, 0};  // three tokens of two
  EXPECT_EQ(MassiveTokens(x, 2, 1), (std::vector<int64_t>{0}));
  EXPECT_EQ(MassiveTokens(x, 2, 2), (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(MassiveTokens(x, 2, 4), (std::vector<int64_t>{0, 1, 2}));
}

}  // namespace
}  // namespace kvrazor::reference
