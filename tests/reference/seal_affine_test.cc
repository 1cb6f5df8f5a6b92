#include "reference/seal_affine.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <tuple>
#include <vector>

#include "reference/backend.h"
#include "reference/dequantize.h"
#include "reference/half.h"

namespace kvrazor::reference {
namespace {

constexpr SideRecipe Quantizer(ZeroPoint zero_point, int bits = 2, int group_size = 32) {
  return {.codec = Codec::kAffine,
          .bits = bits,
          .group_size = group_size,
          .axis = Axis::kPerToken,
          .zero_point = zero_point};
}

std::vector<int> Codes(const std::vector<double>& x, const SideRecipe& recipe) {
  const AffineFit fit = FitAffine(x, recipe);
  std::vector<int> codes;
  for (const double v : x) codes.push_back(CodeOf(AffineCodeArgument(v, fit, recipe), recipe.bits));
  return codes;
}

std::vector<double> ThereAndBack(const std::vector<double>& x, const SideRecipe& recipe) {
  const AffineFit fit = FitAffine(x, recipe);
  std::vector<double> back;
  for (const int code : Codes(x, recipe)) {
    back.push_back(code * DecodeF16(EncodeFiniteF16(fit.scale)) + DecodeF16(EncodeFiniteF16(fit.offset)));
  }
  return back;
}

void ExpectNear(const std::vector<double>& got, const std::vector<double>& want) {
  ASSERT_EQ(got.size(), want.size());
  for (size_t i = 0; i < got.size(); ++i) EXPECT_NEAR(got[i], want[i], 2e-3) << i;  // f16 of the parameters
}

// The worked examples of the quantizer family: one group of four, 2 bits.
TEST(Affine, FloatMinByHand) {
  const SideRecipe a = Quantizer(ZeroPoint::kFloatMin);
  EXPECT_EQ(Codes({-1.2, -0.1, 0.2, 1.8}, a), (std::vector<int>{0, 1, 1, 3}));
  ExpectNear(ThereAndBack({-1.2, -0.1, 0.2, 1.8}, a), {-1.2, -0.2, -0.2, 1.8});
  EXPECT_EQ(ThereAndBack({5, 6, 7, 8}, a), (std::vector<double>{5, 6, 7, 8}));
  ExpectNear(ThereAndBack({0.4, 1.4, 2.4, 3.4}, a), {0.4, 1.4, 2.4, 3.4});
}

SideRecipe Clipped(ZeroPoint zero_point, int clip_percent) {
  SideRecipe recipe = Quantizer(zero_point);
  recipe.clip_percent = clip_percent;
  return recipe;
}

TEST(Affine, ClippedByHand) {
  const SideRecipe b = Clipped(ZeroPoint::kRounded, 80);
  EXPECT_EQ(Codes({-1.2, -0.1, 0.2, 1.8}, b), (std::vector<int>{0, 1, 1, 3}));
  ExpectNear(ThereAndBack({-1.2, -0.1, 0.2, 1.8}, b), {-0.8, 0, 0, 1.6});
}

TEST(Affine, RangeWithZeroByHand) {
  const SideRecipe b0 = Quantizer(ZeroPoint::kRoundedWithZero);
  EXPECT_EQ(Codes({5, 6, 7, 8}, b0), (std::vector<int>{2, 2, 3, 3}));  // scale 8/3, zero point 0
  ExpectNear(ThereAndBack({5, 6, 7, 8}, b0), {16.0 / 3, 16.0 / 3, 8, 8});
  EXPECT_EQ(Codes({-1.2, -0.1, 0.2, 1.8}, b0), (std::vector<int>{0, 1, 1, 3})) << "the range contains 0: as B";
  EXPECT_EQ(Codes({-3, -2, -3, -1}, b0), (std::vector<int>{0, 1, 0, 2})) << "scale 1, zero point 3";
}

// Largest 1.8: at 2 bits the levels are -3.6, -1.8, 0, 1.8; at 4 bits scale 1.8 / 7, codes 8 + x / scale.
TEST(Affine, SymmetricByHand) {
  EXPECT_EQ(Codes({-1.2, -0.1, 0.2, 1.8}, Quantizer(ZeroPoint::kSymmetric)), (std::vector<int>{1, 2, 2, 3}));
  ExpectNear(ThereAndBack({-1.2, -0.1, 0.2, 1.8}, Quantizer(ZeroPoint::kSymmetric)), {-1.8, 0, 0, 1.8});
  EXPECT_EQ(Codes({-1.2, -0.1, 0.2, 1.8}, Quantizer(ZeroPoint::kSymmetric, 4)), (std::vector<int>{3, 8, 9, 15}));
}

TEST(Affine, RoundedZeroByHand) {
  const SideRecipe b = Quantizer(ZeroPoint::kRounded);
  EXPECT_EQ(Codes({-1.2, -0.1, 0.2, 1.8}, b), (std::vector<int>{0, 1, 1, 3}));
  ExpectNear(ThereAndBack({-1.2, -0.1, 0.2, 1.8}, b), {-1, 0, 0, 2});
  EXPECT_EQ(ThereAndBack({5, 6, 7, 8}, b), (std::vector<double>{5, 6, 7, 8}));
  ExpectNear(ThereAndBack({0.4, 1.4, 2.4, 3.4}, b), {0, 1, 2, 3});
  const AffineFit fit = FitAffine({5, 6, 7, 8}, b);
  EXPECT_EQ(fit.zero, -5);
  EXPECT_EQ(fit.offset, 5);
}

TEST(Affine, EqualValuesAreExact) {
  for (const ZeroPoint zero_point : {ZeroPoint::kFloatMin, ZeroPoint::kRounded}) {
    EXPECT_EQ(ThereAndBack({-3, -3, -3}, Quantizer(zero_point)), (std::vector<double>{-3, -3, -3}));
    EXPECT_EQ(ThereAndBack({0, 0}, Quantizer(zero_point)), (std::vector<double>{0, 0}));
    EXPECT_EQ(Codes({-3, -3, -3}, Quantizer(zero_point)), (std::vector<int>{0, 0, 0}));
    EXPECT_EQ(FitAffine({}, Quantizer(zero_point)).offset, 0);
  }
}

// Expected squared error on N(0, 1), computed elsewhere by Monte Carlo with 1.5 million samples.
class AffineError : public testing::TestWithParam<std::tuple<ZeroPoint, int, int, double, double>> {};

TEST_P(AffineError, OnNormalValues) {
  const auto [zero_point, bits, group_size, want, tolerance] = GetParam();
  std::mt19937_64 random(group_size);
  std::normal_distribution<double> normal;
  double error = 0;
  const int num_groups = 1'500'000 / group_size;
  for (int g = 0; g < num_groups; ++g) {
    std::vector<double> x(group_size);
    for (double& v : x) v = normal(random);
    const std::vector<double> back = ThereAndBack(x, Quantizer(zero_point, bits, group_size));
    for (int i = 0; i < group_size; ++i) error += (back[i] - x[i]) * (back[i] - x[i]);
  }
  EXPECT_NEAR(error / (int64_t{num_groups} * group_size), want, tolerance);
}

// 1 %; the table gives the 4-bit figures with two digits, so half a unit of the last one.
INSTANTIATE_TEST_SUITE_P(Table, AffineError,
                         testing::Values(std::tuple(ZeroPoint::kFloatMin, 2, 32, 0.1547, 0.0015),
                                         std::tuple(ZeroPoint::kFloatMin, 2, 64, 0.2023, 0.0020),
                                         std::tuple(ZeroPoint::kFloatMin, 2, 128, 0.2512, 0.0025),
                                         std::tuple(ZeroPoint::kRounded, 2, 32, 0.1649, 0.0016),
                                         std::tuple(ZeroPoint::kRounded, 2, 64, 0.2086, 0.0020),
                                         std::tuple(ZeroPoint::kRounded, 2, 128, 0.2537, 0.0025),
                                         std::tuple(ZeroPoint::kFloatMin, 4, 32, 0.0061, 0.0001),
                                         std::tuple(ZeroPoint::kRounded, 4, 32, 0.0065, 0.0001),
                                         std::tuple(ZeroPoint::kFloatMin, 4, 128, 0.0100, 0.0001),
                                         std::tuple(ZeroPoint::kRounded, 4, 128, 0.0101, 0.0001)));

// A page whose bytes can be said by hand: one head of 32 channels, no transform; channel c of token t is (t mod 4) + c.
class AffinePage : public testing::Test {
 protected:
  AffinePage() : rows_(kPageTokens * 32) {
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < 32; ++c) rows_[t * 32 + c] = EncodeF16(t % 4 + c);
    }
  }
  std::vector<std::byte> Seal(const PageLayout& layout) {
    std::vector<std::byte> page(layout.page_bytes, std::byte{0xaa});
    ReferenceBackend().Seal(layout, rows_.data(), exact_, nullptr, page.data());
    return page;
  }
  int Byte(const std::vector<std::byte>& page, int64_t at) { return std::to_integer<int>(page[at]); }

  std::vector<f16_bits> rows_;
  TokenMask exact_;
};

TEST_F(AffinePage, KeysByHand) {
  SideRecipe recipe = Quantizer(ZeroPoint::kFloatMin);
  recipe.axis = Axis::kPerChannel;
  const PageLayout layout = MakePageLayout(recipe, Side::kKey, {1, 32});
  const std::vector<std::byte> page = Seal(layout);
  // A row: 16 tokens, a dword each, of 16 channels. Codes are t mod 4 in every channel: the byte repeats one code four
  // times.
  for (int t = 0; t < kPageTokens; ++t) {
    for (int block = 0; block < 2; ++block) {
      for (int b = 0; b < 4; ++b) {
        EXPECT_EQ(Byte(page, ((t / 16) * 2 + block) * 64 + (t % 16) * 4 + b), (t % 4) * 0b01010101) << t;
      }
    }
  }
  for (int64_t i = 0; i < 4 * 32; ++i) {  // [4 groups][32 channels]
    EXPECT_EQ(GetU16(layout, page.data(), 0, layout.scale_at, i), 0x3c00) << i;
    EXPECT_EQ(GetU16(layout, page.data(), 0, layout.offset_at, i), EncodeF16(i % 32)) << i;
  }
}

TEST_F(AffinePage, ValuesByHand) {
  // Token t, channels c..c+3: t mod 4 + {c, c+1, c+2, c+3}; the group of 32 channels spans 31: scale 31/3, codes rne(3
  // c / 31).
  const PageLayout layout = MakePageLayout(Quantizer(ZeroPoint::kFloatMin), Side::kValue, {1, 32});
  const std::vector<std::byte> page = Seal(layout);
  for (int t = 0; t < kPageTokens; ++t) {
    EXPECT_EQ(GetU16(layout, page.data(), 0, layout.scale_at, t), EncodeF16(31.0 / 3));
    EXPECT_EQ(GetU16(layout, page.data(), 0, layout.offset_at, t), EncodeF16(t % 4));
    for (int c = 0; c < 32; ++c) {
      const int want = c <= 5 ? 0 : c <= 15 ? 1 : c <= 25 ? 2 : 3;
      // Row (channel / 16, token / 16), dword = channel, byte = token % 4, field = token / 4 % 4.
      const int byte = Byte(page, ((c / 16) * 8 + t / 16) * 64 + (c % 16) * 4 + t % 4);
      EXPECT_EQ((byte >> (2 * (t / 4 % 4))) & 3, want) << t << " " << c;
    }
  }
}

TEST_F(AffinePage, ExactAndInfiniteValuesSpoilNothing) {
  SideRecipe recipe = Quantizer(ZeroPoint::kRounded);
  recipe.axis = Axis::kPerChannel;
  const PageLayout layout = MakePageLayout(recipe, Side::kKey, {1, 32});
  rows_[5 * 32 + 1] = EncodeF16(60000);  // an outlier in a token that is kept exact
  exact_.Set(5);
  rows_[6 * 32 + 2] = 0x7c00;  // infinity counts as 0
  const std::vector<std::byte> page = Seal(layout);
  EXPECT_EQ(GetU16(layout, page.data(), 0, layout.scale_at, 1), 0x3c00);
  EXPECT_EQ(GetU16(layout, page.data(), 0, layout.offset_at, 1), EncodeF16(1));
  EXPECT_EQ(GetU16(layout, page.data(), 0, layout.scale_at, 2), EncodeF16(5.0 / 3));
  EXPECT_EQ(GetU16(layout, page.data(), 0, layout.offset_at, 2), 0);
  for (int c = 0; c < 32; ++c) EXPECT_EQ(GetCode(layout, page.data(), 0, 5, c), 0);
  EXPECT_EQ(GetCode(layout, page.data(), 0, 6, 2), 0);
}

// Norms are taken over all kv heads and multiply what is read back.
TEST(AffineKeys, TokenNormByHand) {
  const SideRecipe recipe = {.codec = Codec::kAffine,
                             .bits = 2,
                             .group_size = 32,
                             .axis = Axis::kPerChannel,
                             .zero_point = ZeroPoint::kRounded,
                             .token_scale = TokenScale::kAllHeads,
                             .rotate = true};
  const PageLayout layout = MakePageLayout(recipe, Side::kKey, {2, 64});
  std::vector<f16_bits> rows(kPageTokens * 128);
  for (int t = 1; t < kPageTokens; ++t) {
    rows[t * 128] = EncodeF16(3 * t);       // head 0, channel 0
    rows[t * 128 + 64] = EncodeF16(4 * t);  // head 1, channel 0
  }
  std::vector<std::byte> page(layout.page_bytes);
  ReferenceBackend().Seal(layout, rows.data(), {}, nullptr, page.data());
  EXPECT_EQ(GetTokenScale(layout, page.data(), 0), 0x3c00);  // a zero token: 1
  for (int t = 1; t < kPageTokens; ++t) EXPECT_EQ(GetTokenScale(layout, page.data(), t), EncodeF16(5 * t));
  const PageSide side = {.sealed = page.data()};
  for (int t = 32; t < kPageTokens;
       ++t) {  // groups without the zero token hold one direction: exact but for f16 parameters
    EXPECT_NEAR(DequantizeHead(layout, side, t, 0)[0].value, 3 * t, 3 * t * 0x1p-11);
    EXPECT_NEAR(DequantizeHead(layout, side, t, 1)[0].value, 4 * t, 4 * t * 0x1p-11);
    EXPECT_NEAR(DequantizeHead(layout, side, t, 1)[1].value, 0, 4 * t * 0x1p-11);
  }
}

}  // namespace
}  // namespace kvrazor::reference
