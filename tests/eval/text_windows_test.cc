#include "eval/text_windows.h"

#include <gtest/gtest.h>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

using Positions = std::vector<int64_t>;

TEST(TextWindowsTest, WindowsFollowEachOther) {
  EXPECT_EQ(WindowStarts(100, {.window = 30}), (Positions{0, 30, 60}));
  EXPECT_EQ(WindowStarts(90, {.window = 30}), (Positions{0, 30, 60}));
  EXPECT_EQ(WindowStarts(89, {.window = 30}), (Positions{0, 30}));
  EXPECT_EQ(WindowStarts(100, {.window = 30, .windows = 2}), (Positions{0, 30}));
  EXPECT_EQ(WindowStarts(30, {.window = 30}), (Positions{0}));
}

TEST(TextWindowsTest, WindowsOverlapOrLeaveGaps) {
  EXPECT_EQ(WindowStarts(60, {.window = 30, .stride = 10}), (Positions{0, 10, 20, 30}));
  EXPECT_EQ(WindowStarts(100, {.window = 10, .stride = 45}), (Positions{0, 45, 90}));
}

TEST(TextWindowsTest, SaysWhatDoesNotFit) {
  EXPECT_THROW(WindowStarts(29, {.window = 30}), Error);
  EXPECT_THROW(WindowStarts(59, {.window = 30, .windows = 2}), Error);
  EXPECT_THROW(WindowPositions({.window = 30, .first = 29}), Error);
}

TEST(TextWindowsTest, PositionsEndBeforeTheLastToken) {
  EXPECT_EQ(WindowPositions({.window = 6, .first = 2}), (Positions{2, 3, 4}));
  EXPECT_EQ(WindowPositions({.window = 7, .first = 2, .step = 2}), (Positions{2, 4}));
  EXPECT_EQ(WindowPositions({.window = 30, .first = 28}), (Positions{28}));
}

TEST(TextWindowsTest, Buckets) {
  const auto bucket = [](int64_t p) { return std::pair(BucketOf(p).from, BucketOf(p).to); };
  EXPECT_EQ(bucket(0), std::pair(int64_t{0}, int64_t{1024}));
  EXPECT_EQ(bucket(1023), std::pair(int64_t{0}, int64_t{1024}));
  EXPECT_EQ(bucket(1024), std::pair(int64_t{1024}, int64_t{2048}));
  EXPECT_EQ(bucket(8191), std::pair(int64_t{7168}, int64_t{8192}));
  EXPECT_EQ(bucket(8192), std::pair(int64_t{8192}, int64_t{16384}));
  EXPECT_EQ(bucket(16384), std::pair(int64_t{16384}, int64_t{32768}));
  EXPECT_EQ(bucket(131071), std::pair(int64_t{65536}, int64_t{131072}));
}

}  // namespace
}  // namespace kvrazor::eval
