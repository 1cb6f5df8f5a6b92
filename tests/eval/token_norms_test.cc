#include "eval/token_norms.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

StoredRows RandomRows(int64_t tokens, int64_t heads, int64_t head_dim, uint64_t seed) {
  StoredRows rows{.num_heads = heads, .head_dim = head_dim, .values = {}};
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal;
  for (int64_t i = 0; i < tokens * heads * head_dim; ++i) rows.values.push_back(normal(random));
  return rows;
}

TEST(TokenNormsTest, NormsOfOneHeadAndOfAll) {
  const StoredRows rows{.num_heads = 2, .head_dim = 2, .values = {3, 4, 0, 12, 0, 0, 1, 0}};
  EXPECT_EQ(rows.num_tokens(), 2);
  EXPECT_EQ(TokenNorms(rows, 0), (std::vector<double>{5, 0}));
  EXPECT_EQ(TokenNorms(rows, 1), (std::vector<double>{12, 1}));
  EXPECT_EQ(TokenNorms(rows, -1), (std::vector<double>{13, 1}));
}

TEST(TokenNormsTest, SpreadByHand) {
  std::vector<double> norms(2 * kNormGroup + 5, 2.0);
  norms[3] = 8;                 // first group: 4 times the median
  norms[kNormGroup + 1] = 0.5;  // second: a quarter of it
  norms.back() = 1e9;           // in the group that is left out
  const NormSpread spread = SpreadOf(norms);
  EXPECT_DOUBLE_EQ(spread.max_over_median, 2.5);
  EXPECT_DOUBLE_EQ(spread.max_over_median_worst, 4);
  EXPECT_DOUBLE_EQ(spread.median_over_min, 2.5);
  EXPECT_DOUBLE_EQ(spread.median_over_min_worst, 4);
  EXPECT_EQ(Outliers(norms), (std::vector<int64_t>{3, kNormGroup + 1, 2 * kNormGroup + 4}));
  EXPECT_THROW(SpreadOf(std::vector<double>(kNormGroup - 1, 1.0)), Error);
  EXPECT_TRUE(Outliers({}).empty());
}

TEST(TokenNormsTest, FourLevelsHoldFourValues) {
  StoredRows rows{.num_heads = 1, .head_dim = 2, .values = {}};
  for (int t = 0; t < kNormGroup; ++t) rows.values.insert(rows.values.end(), {static_cast<float>(t % 4), 5.0f});
  EXPECT_NEAR(KeyError(rows, {}, 2), 0, 1e-12);
  EXPECT_GT(KeyError(rows, {}, 1), 1e-3);
}

TEST(TokenNormsTest, MagnitudesByChannel) {
  // 2 tokens, 2 heads of 2 values; norms 5 and 13.
  const StoredRows rows{.num_heads = 2, .head_dim = 2, .values = {-3, 0, 4, 0, 0, -12, 0, 5}};
  EXPECT_EQ(Magnitudes(rows, {}, -1), (std::vector<float>{3, 0, 0, 12, 4, 0, 0, 5}));
  EXPECT_EQ(Magnitudes(rows, {}, 1), (std::vector<float>{4, 0, 0, 5}));
  EXPECT_EQ(Magnitudes(rows, {.token_scale = true}, 0), (std::vector<float>{0.6f, 0, 0, 12.0f / 13}));
  // A rotated spike is spread evenly: 8 / sqrt(64) in each channel.
  StoredRows spikes{.num_heads = 1, .head_dim = 64, .values = std::vector<float>(2 * 64)};
  spikes.values[5] = spikes.values[64 + 9] = -8;
  for (const float magnitude : Magnitudes(spikes, {.rotate = true}, 0)) EXPECT_NEAR(magnitude, 1, 1e-5);
  EXPECT_THROW(Magnitudes({.num_heads = 1, .head_dim = 3, .values = {1, 2, 3}}, {.rotate = true}, 0), Error);
}

// One token a tenth as large as the others: its channels are coded with the others' scales, unless its norm is taken out first.
TEST(TokenNormsTest, TokenScalingCuresSmallTokens) {
  StoredRows rows = RandomRows(4 * kNormGroup, 2, 64, 3);
  const double even = KeyError(rows, {}, 2), even_scaled = KeyError(rows, {.token_scale = true}, 2);
  for (int64_t t = 0; t < rows.num_tokens(); t += 8) {
    for (int64_t c = 0; c < 128; ++c) rows.values[static_cast<size_t>(t * 128 + c)] *= 0.1f;
  }
  EXPECT_GT(KeyError(rows, {}, 2), 3 * even);
  EXPECT_NEAR(KeyError(rows, {.token_scale = true}, 2), even_scaled,
              1e-5 * even_scaled);  // scaling by a token's own factor drops out
}

// A large channel spoils nothing for per-channel scales; a token with all its weight in one channel does, and rotation spreads it.
TEST(TokenNormsTest, RotationSpreadsSpikes) {
  StoredRows rows = RandomRows(2 * kNormGroup, 1, 64, 4);
  for (int64_t t = 0; t < rows.num_tokens(); ++t)
    rows.values[static_cast<size_t>(t * 64 + (t * 7) % 64)] += t % 2 ? 20.0f : -20.0f;
  EXPECT_LT(KeyError(rows, {.rotate = true}, 2), 0.7 * KeyError(rows, {}, 2));
  rows.head_dim = 32;
  rows.num_heads = 2;
  EXPECT_NO_THROW(KeyError(rows, {.rotate = true}, 2));
  const StoredRows odd = RandomRows(kNormGroup, 1, 48, 5);
  EXPECT_THROW(KeyError(odd, {.rotate = true}, 2), Error);
  EXPECT_NO_THROW(KeyError(odd, {}, 2));
}

TEST(TokenNormsTest, TokensOfNormZeroCountAsExact) {
  StoredRows rows = RandomRows(kNormGroup, 1, 32, 6);
  for (int c = 0; c < 32; ++c) rows.values[static_cast<size_t>(c)] = 0;
  EXPECT_TRUE(std::isfinite(KeyError(rows, {.rotate = true, .token_scale = true}, 2)));
  EXPECT_TRUE(std::isfinite(SpreadOf(TokenNorms(rows, -1)).median_over_min));
}

}  // namespace
}  // namespace kvrazor::eval
