// RotateKV's keys against float64, and RoPE there and back.
#include "eval/rotate_kv.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <random>

#include "eval/rope.h"
#include "kvrazor/error.h"
#include "reference/rotate_kv.h"
#include "src/core/half.h"

namespace kvrazor::eval {
namespace {

constexpr float kBase = 10000;

struct RopeCase {
  int mode = GGML_ROPE_TYPE_NORMAL;
  int num_dims = 64;
  float freq_scale = 1, ext_factor = 0, attn_factor = 1;
};

/// A RoPE as a graph would hold it.
Rope MakeRope(const RopeCase& c, int head_dim) {
  ggml_context* context = ggml_init({.mem_size = 1 << 20, .mem_buffer = nullptr, .no_alloc = true});
  ggml_tensor* x = ggml_new_tensor_3d(context, GGML_TYPE_F32, head_dim, 2, 8);
  const bool multi = c.mode & GGML_ROPE_TYPE_MROPE;
  ggml_tensor* at = ggml_new_tensor_1d(context, GGML_TYPE_I32, multi ? 32 : 8);
  int sections[GGML_MROPE_SECTIONS] = {16, 8, 8, 0};
  const Rope rope(multi ? ggml_rope_multi(context, x, at, nullptr, c.num_dims, sections, c.mode, 4096, kBase,
                                          c.freq_scale, c.ext_factor, c.attn_factor, 32, 1)
                        : ggml_rope_ext(context, x, at, nullptr, c.num_dims, c.mode, 4096, kBase, c.freq_scale,
                                        c.ext_factor, c.attn_factor, 32, 1));
  ggml_free(context);
  return rope;
}

std::vector<float> RandomRows(size_t count, unsigned seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> rows(count);
  for (float& x : rows) x = normal(random);
  return rows;
}

TEST(RopeTest, IsThatOfTheDefinition) {
  constexpr int kTokens = 5, kHeads = 3, kDim = 64;
  for (const int mode : {GGML_ROPE_TYPE_NORMAL, GGML_ROPE_TYPE_NEOX}) {
    const Rope rope = MakeRope({.mode = mode}, kDim);
    std::vector<float> rows = RandomRows(kTokens * kHeads * kDim, 3);
    std::vector<double> want(rows.begin(), rows.end());
    const std::vector<int32_t> positions = {0, 1, 2, 77, 4001};
    rope.Apply(rows.data(), kTokens, kHeads, positions);
    for (int i = 0; i < kTokens * kHeads; ++i)
      reference::RopeHead(want.data() + i * kDim, kDim, positions[static_cast<size_t>(i / kHeads)], kBase,
                          mode == GGML_ROPE_TYPE_NORMAL);
    // An angle of up to 4001 has an error of a few of float's last bits, the powers of the base by repeated products more.
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(rows[i], want[i], 2e-2) << i;
  }
}

TEST(RopeTest, UndoIsTheWayBack) {
  constexpr int kTokens = 8, kHeads = 2, kDim = 64;
  const RopeCase cases[] = {{},
                            {.mode = GGML_ROPE_TYPE_NEOX},
                            {.num_dims = 32},
                            {.mode = GGML_ROPE_TYPE_NEOX, .freq_scale = 0.25f, .ext_factor = 1, .attn_factor = 1.2f},
                            {.mode = GGML_ROPE_TYPE_MROPE}};
  for (const RopeCase& c : cases) {
    const Rope rope = MakeRope(c, kDim);
    std::vector<int32_t> positions(static_cast<size_t>(kTokens * rope.positions_per_token()));
    std::iota(positions.begin(), positions.end(), 100);
    const std::vector<float> rows = RandomRows(kTokens * kHeads * kDim, 4);
    std::vector<float> turned = rows;
    rope.Apply(turned.data(), kTokens, kHeads, positions);
    EXPECT_NE(turned, rows);
    rope.Undo(turned.data(), kTokens, kHeads, positions);
    // Two rotations by the same float sines and cosines: their squares add up to 1 up to rounding.
    for (size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(turned[i], rows[i], 1e-5) << i;
  }
  std::vector<float> rows = {1, 2};
  Rope().Apply(rows.data(), 1, 1, {});
  EXPECT_EQ(rows, (std::vector<float>{1, 2}));
}

TEST(RotateKvTest, RunsOfHeads) {
  EXPECT_EQ(RotateKvRun(8), 4);
  EXPECT_EQ(RotateKvRun(6), 2);
  EXPECT_EQ(RotateKvRun(3), 1);
  std::vector<float> rows = RandomRows(3 * 8 * 32, 1);
  const std::vector<double> want = reference::RotateRuns({rows.begin(), rows.end()}, 4 * 32);
  RotateHeadRuns(rows.data(), 3, {8, 32});
  for (size_t i = 0; i < rows.size(); ++i) ASSERT_NEAR(rows[i], want[i], 1e-5);
  EXPECT_THROW(CheckRotateKvShape({2, 80}), Error);
}

// Both sides round rotated keys to f16. Their own rounding, float against double, moves some of these by the last of 11 bits, and so
// what is rounded to a code by 2^-11 of itself at most, and as much again through the range of the group: codes that near a border may
// differ by one, a zero point by one for the whole group. Parameters are stored in 11 bits, and the result is rounded to them.
TEST(RotateKvTest, PageIsThatOfFloat64) {
  const SideRecipe recipe = ParseRecipe("rotatekv").k;
  for (const HeadShape shape : {HeadShape{3, 64}, HeadShape{4, 32}, HeadShape{2, 128}}) {
    const int width = shape.num_kv_heads * shape.head_dim;
    const Rope rope = MakeRope({.mode = GGML_ROPE_TYPE_NEOX, .num_dims = shape.head_dim}, shape.head_dim);
    std::vector<int32_t> positions(kPageTokens);
    std::iota(positions.begin(), positions.end(), 3);
    std::vector<float> keys = RandomRows(static_cast<size_t>(kPageTokens * width), 9);
    for (int t = 0; t < kPageTokens; ++t) keys[static_cast<size_t>(t * width + 5)] += 8;  // a channel with a mean
    std::vector<double> sums(static_cast<size_t>(width));
    for (size_t i = 0; i < keys.size(); ++i) sums[i % static_cast<size_t>(width)] += keys[i];
    const std::vector<int32_t> order = ChannelOrder(sums);
    EXPECT_EQ(order, reference::RotateKvOrder(sums));

    std::vector<float> turned = keys;
    rope.Apply(turned.data(), kPageTokens, shape.num_kv_heads, positions);
    std::vector<f16_bits> rows(turned.size());
    std::transform(turned.begin(), turned.end(), rows.begin(), F16FromF32);
    const std::vector<f16_bits> as_written = rows;
    TokenMask exact;
    exact.Set(7);
    QuantizeBeforeRope(recipe, shape, order, rope, positions, exact, rows.data());

    double lost = 0, difference = 0;
    for (int t = 0; t < kPageTokens; ++t) {
      const auto first = static_cast<size_t>(t) * static_cast<size_t>(width);
      if (exact.Test(t)) {
        EXPECT_TRUE(
            std::equal(rows.begin() + t * width, rows.begin() + (t + 1) * width, as_written.begin() + t * width));
        continue;
      }
      // Before RoPE both, as float undoes it from the f16 rows.
      const auto before = [&](const std::vector<f16_bits>& from) {
        std::vector<float> row(static_cast<size_t>(width));
        std::transform(from.begin() + t * width, from.begin() + (t + 1) * width, row.begin(), F32FromF16);
        rope.Undo(row.data(), 1, shape.num_kv_heads, {positions[static_cast<size_t>(t)]});
        return row;
      };
      const std::vector<float> key = before(as_written), got = before(rows);
      const int run = RotateKvRun(shape.num_kv_heads) * shape.head_dim;
      const reference::RotateKvKey want =
          reference::QuantizeRotateKv({key.begin(), key.end()}, run, order, recipe, std::exp2(-10));
      double square = 0, size = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        square += std::pow(got[i] - want.key[i], 2);
        size += std::pow(want.key[i], 2);
        lost += std::pow(want.key[i] - keys[first + i], 2);
      }
      EXPECT_LE(std::sqrt(square), std::sqrt(want.slack_square) + 2 * std::exp2(-10) * std::sqrt(size))
          << "token " << t;
      difference += square;
    }
    EXPECT_LT(difference, 0.01 * lost);
  }
}

TEST(RotateKvTest, LargestEntriesSoFar) {
  constexpr int kWidth = 16;
  const std::vector<float> x = RandomRows(90 * kWidth, 2);
  MassiveEntries entries;
  std::vector<int64_t> slots(45);
  std::iota(slots.begin(), slots.end(), 0);
  const auto expect = [&](int64_t tokens) {
    const std::vector<int64_t> want =
        reference::MassiveTokens({x.begin(), x.begin() + tokens * kWidth}, kWidth, kMassiveEntries);
    for (int64_t t = 0; t < tokens; ++t)
      EXPECT_EQ(entries.Contains(t), std::find(want.begin(), want.end(), t) != want.end()) << t << " of " << tokens;
  };
  entries.Add(x.data(), kWidth, slots);
  expect(45);
  std::iota(slots.begin(), slots.end(), 45);
  entries.Add(x.data() + 45 * kWidth, kWidth, slots);
  expect(90);
  EXPECT_FALSE(entries.Contains(90));
  std::vector<float> large(kWidth);
  large[3] = -100;
  entries.Add(large.data(), kWidth, {90});
  EXPECT_TRUE(entries.Contains(90));
  entries.Add(large.data() + kWidth, 0, {90});  // another token in its slot
  EXPECT_FALSE(entries.Contains(90));
}

}  // namespace
}  // namespace kvrazor::eval
