#include "kvrazor/layout.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <random>
#include <vector>

#include "kvrazor/error.h"

namespace kvrazor {
namespace {

TEST(PageLayoutTest, BitsPerValueAreThoseOfTheDefinitions) {
  struct Case {
    const char* recipe;
    int head_dim;
    double k, v;
  };
  for (const Case& c :
       {Case{"kivi", 128, 3.0, 3.0}, Case{"oscar", 128, 3.0 + 16.0 / (8 * 128), 3.0},
        Case{"oscar:k2g128,v2g128", 128, 2.25 + 16.0 / 1024, 2.25},
        Case{"razor-2", 64, 2.25 + 8 * 64.0 / (128 * 512), 2.25},
        Case{"razor-2", 128, 2.1875 + 8 * 64.0 / (128 * 1024), 2.1875},
        Case{"razor-2r", 64, 2.5 + 8 * 64.0 / (128 * 512), 2.25},
        Case{"razor-2r", 128, 2.3125 + 8 * 64.0 / (128 * 1024), 2.1875},
        Case{"razor-2:k3", 64, 3.25 + 8 * 64.0 / (128 * 512), 2.25},
        Case{"razor-3", 64, 3.5 + 8 * 64.0 / (128 * 512), 2.25},
        Case{"razor-3", 128, 3.3125 + 8 * 64.0 / (128 * 1024), 2.1875},
        Case{"razor-3v", 64, 3.5 + 8 * 64.0 / (128 * 512), 2.625},
        Case{"razor-3v", 128, 3.3125 + 8 * 64.0 / (128 * 1024), 2.5625}, Case{"kivi:k3g32,v3g64", 64, 4.0, 3.5},
        Case{"oscar:k4g32,v4g32", 64, 5.0 + 16.0 / 512, 5.0}, Case{"f16", 80, 16, 16}}) {
    const Recipe r = ParseRecipe(c.recipe);
    EXPECT_DOUBLE_EQ(MakePageLayout(r.k, Side::kKey, {8, c.head_dim}).bits_per_value(), c.k)
        << c.recipe << " " << c.head_dim;
    EXPECT_DOUBLE_EQ(MakePageLayout(r.v, Side::kValue, {8, c.head_dim}).bits_per_value(), c.v)
        << c.recipe << " " << c.head_dim;
  }
}

TEST(PageLayoutTest, PartsAreAlignedDisjointAndInside) {
  for (const Method& m : Methods()) {
    for (int head_dim : {32, 64, 128, 256}) {
      for (int heads : {1, 2, 3, 8}) {
        for (Side side : {Side::kKey, Side::kValue}) {
          const PageLayout p = MakePageLayout(side == Side::kKey ? m.recipe.k : m.recipe.v, side, {heads, head_dim});
          if (p.recipe.codec == Codec::kF16) continue;
          const int64_t groups = p.recipe.group_size > 0 ? int64_t{kPageTokens} * head_dim / p.recipe.group_size : 0;
          const int64_t token_groups = kPageTokens / p.tokens_per_group();
          std::vector<std::pair<int64_t, int64_t>> parts = {{p.codes_at, p.codes_bytes}};
          auto add = [&](int64_t at, int64_t bytes) {
            if (at >= 0) parts.emplace_back(at, bytes);
          };
          add(p.high_codes_at, kPageTokens * head_dim / 8);
          add(p.scale_at, p.recipe.codec == Codec::kAffine ? groups * 2
                          : side == Side::kKey             ? kPageTokens
                                                           : token_groups * head_dim);
          add(p.offset_at, groups * 2);
          add(p.mean_at, head_dim * 2);
          add(p.norm_at, p.recipe.codec == Codec::kCodebook ? kPageTokens * 2 : kPageTokens);
          add(p.mean_factor_at, kPageTokens * 2);
          add(p.centre_at, token_groups * head_dim);
          std::sort(parts.begin(), parts.end());
          int64_t end = 0;
          for (const auto& [at, bytes] : parts) {
            EXPECT_GE(at, end);
            end = at + bytes;
          }
          EXPECT_LE(end, p.head_bytes);
          EXPECT_LT(p.head_bytes - end, 64) << "no more padding than alignment asks for";
          EXPECT_EQ(p.head_bytes % 64, 0);
          EXPECT_EQ(p.heads_at % 64, 0);
          EXPECT_EQ(p.page_bytes, p.heads_at + heads * p.head_bytes);
          EXPECT_LE(p.token_scale_at + (p.token_scale_at < 0 ? 0 : kPageTokens * 2), p.heads_at);
          EXPECT_LE(p.head_scalars_at + (p.head_scalars_at < 0 ? 0 : heads * 8), p.heads_at);
        }
      }
    }
  }
}

TEST(PageLayoutTest, ImpossibleShapesAreErrors) {
  const Recipe oscar = ParseRecipe("oscar");
  for (int head_dim : {0, 16, 48, 80, 96, 192, 512, -64}) {
    EXPECT_THROW(MakePageLayout(oscar.k, Side::kKey, {8, head_dim}), Error) << head_dim;
  }
  EXPECT_THROW(MakePageLayout(oscar.k, Side::kKey, {0, 64}), Error);
  EXPECT_THROW(MakePageLayout(ParseRecipe("oscar:v2g128").v, Side::kValue, {8, 64}), Error)
      << "a group longer than the head";
  EXPECT_NO_THROW(MakePageLayout(SideRecipe{}, Side::kKey, {8, 80})) << "16 bits take any head";
}

TEST(E5M3Test, EveryCodeIsAFixedPoint) {
  for (int b = 0; b <= 0xf7; ++b) EXPECT_EQ(EncodeE5M3(DecodeE5M3(static_cast<uint8_t>(b))), b);
  EXPECT_EQ(EncodeE5M3(1e30f), 0xf7);
  EXPECT_EQ(EncodeE5M3(0.0f), 0);
  EXPECT_EQ(EncodeE5M3(-1.0f), 0);
}

TEST(E5M3Test, RoundsToTheNearestValue) {
  std::mt19937 random(1);
  std::uniform_real_distribution<float> exponent(-26, 16);
  for (int i = 0; i < 100000; ++i) {
    const float x = std::exp2(exponent(random));
    const uint8_t b = EncodeE5M3(x);
    const double error = std::abs(double{x} - DecodeE5M3(b));
    for (int n : {b - 1, b + 1}) {
      if (n < 0 || n > 0xf7) continue;
      ASSERT_LE(error, std::abs(double{x} - DecodeE5M3(static_cast<uint8_t>(n)))) << x;
    }
  }
}

TEST(E3M5Test, RoundsToTheNearestValueBelowTheBase) {
  for (float base : {1.0f, 0.0009765625f, 1024.0f}) {
    for (int b = 0; b < 256; ++b) EXPECT_EQ(EncodeE3M5(DecodeE3M5(static_cast<uint8_t>(b), base), base), b);
    std::mt19937 random(2);
    std::uniform_real_distribution<float> exponent(-9, 1);
    for (int i = 0; i < 100000; ++i) {
      const float x = base * std::exp2(exponent(random));
      const uint8_t b = EncodeE3M5(x, base);
      const double error = std::abs(double{x} - DecodeE3M5(b, base));
      double best = error;
      for (int n = 0; n < 256; ++n)
        best = std::min(best, std::abs(double{x} - DecodeE3M5(static_cast<uint8_t>(n), base)));
      ASSERT_LE(error, best) << x << " of " << base;
    }
  }
  EXPECT_EQ(EncodeE3M5(5.0f, 0.0f), 0);
}

TEST(PageLayoutTest, KeysBeforeRopeHaveNone) {
  SideRecipe keys = ParseRecipe("rotatekv").k;
  EXPECT_THROW(MakePageLayout(keys, Side::kKey, {4, 64}), Error);
  keys.before_rope = false;
  EXPECT_DOUBLE_EQ(MakePageLayout(keys, Side::kKey, {4, 64}).bits_per_value(), 3);
}

}  // namespace
}  // namespace kvrazor
