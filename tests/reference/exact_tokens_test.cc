// Worked by hand from the definition. One value a row, so that a token's score is its key's magnitude.
#include "reference/exact_tokens.h"

#include <gtest/gtest.h>

#include <limits>
#include <utility>
#include <vector>

namespace kvrazor::reference {
namespace {

/// Keys of 100, but those that are named.
std::vector<f16_bits> Keys(const std::vector<std::pair<int, float>>& named) {
  std::vector<f16_bits> keys(kPageTokens, F16FromF32(100));
  for (const auto& [token, key] : named) keys[static_cast<size_t>(token)] = F16FromF32(key);
  return keys;
}

std::vector<int> Tokens(const TokenMask& mask) {
  std::vector<int> tokens;
  for (int t = 0; t < kPageTokens; ++t) {
    if (mask.Test(t)) tokens.push_back(t);
  }
  return tokens;
}

std::vector<int64_t> Positions(const std::vector<OutlierPools::Token>& tokens) {
  std::vector<int64_t> positions;
  for (const OutlierPools::Token& token : tokens) positions.push_back(token.position);
  return positions;
}

using Ints = std::vector<int>;
using Positions64 = std::vector<int64_t>;

// Groups of 32, a pool of 2, room for 3 displaced tokens.
//   group 0   3 (key 7), 9 (5)         the pool is 9, 3
//   group 1   40 (-4), 50 (6), 51 (8)  of 5, 7, 4, 6, 8 the smallest are 4 and 5: 40 enters, 3 is displaced
//   group 2   none below 5             no change
//   group 3   100 (1), 101 (2)         both enter, 40 and 9 are displaced: the extra pool is full
//   page 1    token 0 (0.5)            tracing has stopped
TEST(TraceOutliersTest, WorkedByHand) {
  const ExactRule rule{0, 2, 3, 32};
  OutlierPools pools;
  const std::vector<f16_bits> keys = Keys({{3, 7}, {9, 5}, {40, -4}, {50, 6}, {51, 8}, {100, 1}, {101, -2}});
  EXPECT_EQ(Tokens(TraceOutliers(rule, keys.data(), 1, {}, 0, pools)), (Ints{3, 9, 40, 100, 101}));
  EXPECT_EQ(Positions(pools.pool), (Positions64{100, 101}));
  EXPECT_EQ(Positions(pools.extra), (Positions64{3, 40, 9}));
  const std::vector<f16_bits> next = Keys({{0, 0.5f}});
  EXPECT_EQ(Tokens(TraceOutliers(rule, next.data(), 1, {}, 128, pools)), Ints{});
  EXPECT_EQ(Positions(pools.pool), (Positions64{100, 101}));
}

// The same keys in one group of 128: only the two smallest ever enter, nobody is displaced.
TEST(TraceOutliersTest, OneGroupAPage) {
  const ExactRule rule{0, 2, 3, 128};
  OutlierPools pools;
  const std::vector<f16_bits> keys = Keys({{3, 7}, {9, 5}, {40, -4}, {50, 6}, {100, 1}, {101, -2}});
  EXPECT_EQ(Tokens(TraceOutliers(rule, keys.data(), 1, {}, 0, pools)), (Ints{100, 101}));
  EXPECT_TRUE(pools.extra.empty());
}

// Room for one more displaced token: of two smaller ones of a group, the smaller enters.
TEST(TraceOutliersTest, TheLastRoomGoesToTheSmallest) {
  const ExactRule rule{0, 2, 1, 32};
  OutlierPools pools;
  const std::vector<f16_bits> keys = Keys({{3, 7}, {9, 5}, {40, 2}, {41, 1}});
  EXPECT_EQ(Tokens(TraceOutliers(rule, keys.data(), 1, {}, 0, pools)), (Ints{3, 9, 41}));
  EXPECT_EQ(Positions(pools.pool), (Positions64{41, 9}));
  EXPECT_EQ(Positions(pools.extra), (Positions64{3}));
}

// Of equal keys the older one is taken and stays; kept tokens and keys that are not finite take no part.
TEST(TraceOutliersTest, TiesKeptTokensAndBrokenKeys) {
  const ExactRule rule{1, 2, 32, 32};
  OutlierPools pools;
  std::vector<f16_bits> keys = Keys({{0, 1}, {5, 3}, {6, 3}, {7, 3}, {33, 3}});
  keys[34] = F16FromF32(std::numeric_limits<float>::infinity());
  keys[35] = F16FromF32(std::numeric_limits<float>::quiet_NaN());
  EXPECT_EQ(Tokens(TraceOutliers(rule, keys.data(), 1, SinkTokens(rule), 0, pools)), (Ints{5, 6}));
}

}  // namespace
}  // namespace kvrazor::reference
