#include "tests/backends/cpu/sealed_page.h"

namespace kvrazor::test {
namespace {

SideRecipe Affine(Side side, ZeroPoint zero_point, int bits, int group_size) {
  return {.codec = Codec::kAffine,
          .bits = bits,
          .group_size = group_size,
          .axis = side == Side::kKey ? Axis::kPerChannel : Axis::kPerToken,
          .zero_point = zero_point};
}

/// Every group holds the same four numbers over and over: along tokens for keys, along channels for values.
Rows Repeated(Side side, HeadShape shape, const std::vector<float>& four) {
  Rows rows(shape);
  for (int t = 0; t < kPageTokens; ++t) {
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      for (int c = 0; c < shape.head_dim; ++c) rows.Set(t, h, c, four[(side == Side::kKey ? t : c) % 4]);
    }
  }
  return rows;
}

struct HandCase {
  ZeroPoint zero_point;
  std::vector<float> in;
  std::vector<int> codes;
  std::vector<float> out;
};

// Groups small enough to compute by hand; f16 rounding of inputs and parameters is below 0.003.
TEST(SealAffineTest, HandComputedGroups) {
  const std::vector<HandCase> cases = {
      {ZeroPoint::kFloatMin, {-1.2f, -0.1f, 0.2f, 1.8f}, {0, 1, 1, 3}, {-1.2f, -0.2f, -0.2f, 1.8f}},
      {ZeroPoint::kRounded, {-1.2f, -0.1f, 0.2f, 1.8f}, {0, 1, 1, 3}, {-1, 0, 0, 2}},
      {ZeroPoint::kFloatMin, {5, 6, 7, 8}, {0, 1, 2, 3}, {5, 6, 7, 8}},
      {ZeroPoint::kRounded, {5, 6, 7, 8}, {0, 1, 2, 3}, {5, 6, 7, 8}},
      {ZeroPoint::kFloatMin, {0.4f, 1.4f, 2.4f, 3.4f}, {0, 1, 2, 3}, {0.4f, 1.4f, 2.4f, 3.4f}},
      {ZeroPoint::kRounded, {0.4f, 1.4f, 2.4f, 3.4f}, {0, 1, 2, 3}, {0, 1, 2, 3}},
      {ZeroPoint::kFloatMin, {-7, -7, -7, -7}, {0, 0, 0, 0}, {-7, -7, -7, -7}},
      {ZeroPoint::kRounded, {-7, -7, -7, -7}, {0, 0, 0, 0}, {-7, -7, -7, -7}},
  };
  OnEveryTarget([&] {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const HandCase& hand : cases) {
        const HeadShape shape = {2, 32};
        const SealedPage page(MakePageLayout(Affine(side, hand.zero_point, 2, 32), side, shape),
                              Repeated(side, shape, hand.in));
        for (int t = 0; t < kPageTokens; ++t) {
          for (int c = 0; c < shape.head_dim; ++c) {
            const int i = (side == Side::kKey ? t : c) % 4;
            ASSERT_EQ(page.Code(1, t, c), hand.codes[i]) << "token " << t << " channel " << c;
            ASSERT_NEAR(page.Read(1, t, c).value, hand.out[i], 0.003);
          }
        }
      }
    }
  });
}

/// Monte Carlo values of the mean squared error on N(0, 1), docs/numerics.md.
struct Expected {
  ZeroPoint zero_point;
  int bits;
  int group_size;
  double error;
  double tolerance;
};

class AffineErrorTest : public testing::TestWithParam<Expected> {};

TEST_P(AffineErrorTest, OnNormalData) {
  const HeadShape shape = {8, 128};
  for (const Side side : {Side::kKey, Side::kValue}) {
    const PageLayout layout =
        MakePageLayout(Affine(side, GetParam().zero_point, GetParam().bits, GetParam().group_size), side, shape);
    double sum = 0;
    constexpr int kPages = 8;  // a million values
    for (int i = 0; i < kPages; ++i) {
      const Rows rows = Rows::Normal(shape, 100 + i);
      sum += MeanSquaredError(SealedPage(layout, rows), rows);
    }
    EXPECT_NEAR(sum / kPages, GetParam().error, GetParam().tolerance * GetParam().error);
  }
}

INSTANTIATE_TEST_SUITE_P(Table, AffineErrorTest,
                         testing::Values(Expected{ZeroPoint::kFloatMin, 2, 32, 0.1547, 0.01},
                                         Expected{ZeroPoint::kFloatMin, 2, 64, 0.2023, 0.01},
                                         Expected{ZeroPoint::kFloatMin, 2, 128, 0.2512, 0.01},
                                         Expected{ZeroPoint::kRounded, 2, 32, 0.1649, 0.01},
                                         Expected{ZeroPoint::kRounded, 2, 64, 0.2086, 0.01},
                                         Expected{ZeroPoint::kRounded, 2, 128, 0.2537, 0.01},
                                         Expected{ZeroPoint::kFloatMin, 4, 32, 0.0061, 0.02},  // two digits are known
                                         Expected{ZeroPoint::kRounded, 4, 128, 0.0101, 0.02}));

// The chosen code is the nearest level of the stored parameters (A), so no value is further off than half a scale from the
// range's inside; the last bits of the f16 parameters can move a value at the end of the range by Gamma-sized amounts more.
TEST(SealAffineTest, FloatMinChoosesTheNearestLevel) {
  OnEveryTarget([] {
    for (const Side side : {Side::kKey, Side::kValue}) {
      const HeadShape shape = {1, 64};
      const Rows rows = Rows::KeyLike(shape, 3);
      const SealedPage page(MakePageLayout(Affine(side, ZeroPoint::kFloatMin, 2, 32), side, shape), rows);
      for (int t = 0; t < kPageTokens; ++t) {
        for (int c = 0; c < 64; ++c) {
          const double scale = page.AffineScale(0, t, c);
          const double offset = page.AffineOffset(0, t, c);
          double nearest = INFINITY;
          for (int code = 0; code < 4; ++code)
            nearest = std::min(nearest, std::abs(rows(t, 0, c) - (scale * code + offset)));
          ASSERT_NEAR(std::abs(rows(t, 0, c) - page.Read(0, t, c).value), nearest, 1e-5);
        }
      }
    }
  });
}

// OScaR's norm runs over all kv heads: multiplying one token by 8 changes its norm and nothing else in the page.
TEST(SealAffineTest, TokenScaleTakesOutTheNorm) {
  OnEveryTarget([] {
    const HeadShape shape = {3, 64};
    Rows rows = Rows::Normal(shape, 4);
    const PageLayout layout = Layout("oscar", Side::kKey, shape);
    const SealedPage before(layout, rows);
    double square = 0;
    for (int h = 0; h < 3; ++h) {
      for (int c = 0; c < 64; ++c) {
        square += double{rows(77, h, c)} * rows(77, h, c);
        rows.Set(77, h, c, 8 * rows(77, h, c));
      }
    }
    const SealedPage after(layout, rows);
    EXPECT_NEAR(before.TokenScale(77), std::sqrt(square), std::sqrt(square) * 0x1p-10);
    for (int t = 0; t < kPageTokens; ++t) {
      EXPECT_EQ(after.TokenScale(t), (t == 77 ? 8 : 1) * before.TokenScale(t));
    }
    for (int64_t i = layout.heads_at; i < layout.page_bytes; ++i)
      ASSERT_EQ(before.data()[i], after.data()[i]) << "byte " << i;
  });
}

}  // namespace
}  // namespace kvrazor::test
