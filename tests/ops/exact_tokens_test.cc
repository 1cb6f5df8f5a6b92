#include "src/ops/exact_tokens.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <limits>
#include <random>
#include <vector>

#include "reference/exact_tokens.h"

namespace kvrazor {
namespace {

/// Keys with a few tokens of small norm, fewer and smaller as the text goes on or not; some equal, some not finite.
std::vector<f16_bits> RandomKeys(std::mt19937_64& random, int64_t row_values) {
  std::normal_distribution<float> normal;
  std::vector<f16_bits> keys(static_cast<size_t>(kPageTokens * row_values));
  for (int t = 0; t < kPageTokens; ++t) {
    f16_bits* row = keys.data() + t * row_values;
    const float size = random() % 20 == 0 ? std::exp2(-static_cast<float>(random() % 20)) : 1.0f;
    for (int64_t c = 0; c < row_values; ++c) row[c] = F16FromF32(size * normal(random));
    if (t > 0 && random() % 8 == 0) std::copy_n(row - row_values, row_values, row);
    if (random() % 50 == 0) row[random() % static_cast<uint64_t>(row_values)] = random() % 2 ? 0x7c00 : 0xfe01;
  }
  return keys;
}

// Against the definition, over texts of some pages and for every kind of rule.
TEST(ChooseExactTest, MatchesTheDefinition) {
  std::mt19937_64 random(5);
  int64_t num_chosen = 0, num_full = 0;
  for (int round = 0; round < 100; ++round) {
    const int64_t row_values = std::vector<int64_t>{1, 32, 33, 192}[random() % 4];
    ExactRule rule;
    rule.sinks = static_cast<int>(random() % 3) * 4;
    rule.pool = static_cast<int>(random() % (kMaxExactTokens + 1));
    rule.extra = static_cast<int>(std::vector<uint64_t>{0, 1, 7, 32}[random() % 4]);
    rule.group_tokens = std::vector<int>{32, 64, 128}[random() % 3];
    ExactTrace trace;
    reference::OutlierPools pools;
    for (int64_t page = 0; page < 5; ++page) {
      const std::vector<f16_bits> keys = RandomKeys(random, row_values);
      const TokenMask kept = page == 0 ? SinkTokens(rule) : TokenMask{};
      const TokenMask chosen = ChooseExact(rule, keys.data(), row_values, kept, trace);
      ASSERT_EQ(chosen, reference::TraceOutliers(rule, keys.data(), row_values, kept, page * kPageTokens, pools))
          << "round " << round << ", page " << page;
      ASSERT_EQ(trace.pool_size, static_cast<int>(pools.pool.size()));
      ASSERT_EQ(trace.num_displaced, static_cast<int>(pools.extra.size()));
      ASSERT_TRUE(std::is_sorted(trace.scores.begin(), trace.scores.begin() + trace.pool_size));
      num_chosen += chosen.Count();
    }
    ASSERT_LE(trace.pool_size + trace.num_displaced, rule.MostTokens(1 << 20) - rule.sinks);
    num_full += rule.pool > 0 && trace.num_displaced == rule.extra;
  }
  EXPECT_GT(num_chosen, 1000);
  EXPECT_GT(num_full, 20);
}

TEST(ChooseExactTest, NormsAreExact) {
  const std::vector<f16_bits> row = {F16FromF32(1), F16FromF32(-0.5f), 0x0001, 0x83ff, 0x7bff, 0x0000, 0x8000};
  const uint64_t one = uint64_t{1} << 24;
  EXPECT_EQ(L1Norm(row.data(), 1), one);
  EXPECT_EQ(L1Norm(row.data(), 2), one + one / 2);
  EXPECT_EQ(L1Norm(row.data(), 4), one + one / 2 + 1 + 1023);
  EXPECT_EQ(L1Norm(row.data(), 7), one + one / 2 + 1024 + 65504 * one);
  const std::vector<f16_bits> broken = {F16FromF32(1), 0xfc00};
  EXPECT_EQ(L1Norm(broken.data(), 2), std::numeric_limits<uint64_t>::max());
}

TEST(ChooseExactTest, RulesOfRecipes) {
  const ExactRule ott = MakeExactRule(ParseRecipe("ott").ForLayer(2));
  EXPECT_EQ(ott.pool, 5);
  EXPECT_EQ(ott.extra, 32);
  EXPECT_EQ(ott.group_tokens, 32);
  EXPECT_EQ(ott.MostTokens(20), 20);
  EXPECT_EQ(ott.MostTokens(1000), 37);
  EXPECT_FALSE(MakeExactRule(ParseRecipe("ott").ForLayer(1)).any());
  EXPECT_EQ(MakeExactRule(ParseRecipe("ott:k2g128,v2g64").ForLayer(2)).group_tokens, 128);
  EXPECT_EQ(MakeExactRule(ParseRecipe("razor-2:exact=3").ForLayer(0)).group_tokens, 128) << "no groups of tokens";
  EXPECT_EQ(MakeExactRule(ParseRecipe("quarot:exact=3").ForLayer(0)).group_tokens, 128) << "groups along channels";
  EXPECT_EQ(MakeExactRule(ParseRecipe("razor-2").ForLayer(0)).MostTokens(1000), 4) << "sinks";
}

}  // namespace
}  // namespace kvrazor
