// What holds for sealing with every codec: the round trip, pages at the edges of the number formats, and misuse.
#include <algorithm>
#include <limits>

#include "kvrazor/error.h"
#include "tests/backends/cpu/sealed_page.h"

namespace kvrazor::test {
namespace {

constexpr f16_bits kInfinity = 0x7c00;
constexpr f16_bits kNaN = 0x7e01;
constexpr f16_bits kLargest = 0x7bff;   // 65504
constexpr f16_bits kSmallest = 0x0001;  // 2^-24

struct Case {
  std::string recipe;
  Side side;
  int head_dim;
};

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const std::string recipe :
       {"kivi", "oscar", "razor-2", "kivi:k4g64,v4g32", "oscar:k2g128,v2g64", "razor-2:k4,v4"}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (const int head_dim : {32, 64, 128, 256}) {
        if (recipe == "oscar:k2g128,v2g64" && side == Side::kValue && head_dim < 64) continue;
        cases.push_back({recipe, side, head_dim});
      }
    }
  }
  return cases;
}

class SealTest : public testing::TestWithParam<Case> {
 protected:
  PageLayout LayoutOf(int num_kv_heads) const {
    return Layout(GetParam().recipe, GetParam().side, Shape(num_kv_heads));
  }
  HeadShape Shape(int num_kv_heads) const { return {num_kv_heads, GetParam().head_dim}; }

  /// Everything that the page's values are made of is finite.
  static void ExpectFinite(const SealedPage& page) {
    PageSide view;
    view.sealed = page.data();
    std::vector<float> out(static_cast<size_t>(kPageTokens * page.layout().row_values()));
    CpuBackend().Dequantize(page.layout(), view, 0, kPageTokens, out.data());
    EXPECT_TRUE(std::all_of(out.begin(), out.end(), [](float x) { return std::isfinite(x); }));
  }
};

TokenMask Scattered() {
  TokenMask mask;
  for (const int t : {0, 15, 16, 31, 32, 63, 64, 100, 127}) mask.Set(t);
  return mask;
}

// A stored value is a sum of 2 or 3 terms of up to 3 factors, then log2(D) additions and one product rotate it back:
//   |got - want| <= Gamma(log2 D + 8) * sum_c |H_ic| magnitude_c
TEST_P(SealTest, RoundTrip) {
  OnEveryTarget([&] {
    for (const TokenMask& exact : {TokenMask{}, Scattered(), FirstTokens(127)}) {
      const int num_kv_heads = exact.Count() == 127 ? 1 : 2;
      const HeadShape shape = Shape(num_kv_heads);
      const Rows rows = Rows::KeyLike(shape, 41);
      const SealedPage page(LayoutOf(num_kv_heads), rows, exact);
      const std::vector<f16_bits> exact_rows = rows.Only(exact);
      PageSide view;
      view.sealed = page.data();
      view.exact = exact;
      view.exact_rows = exact_rows.data();
      const size_t token_values = static_cast<size_t>(page.layout().row_values());
      std::vector<float> all(kPageTokens * token_values, std::numeric_limits<float>::quiet_NaN());
      CpuBackend().Dequantize(page.layout(), view, 0, kPageTokens, all.data());
      for (int t = 0; t < kPageTokens; ++t) {
        for (int h = 0; h < num_kv_heads; ++h) {
          const float* got =
              all.data() + static_cast<size_t>(t) * token_values + static_cast<size_t>(h) * shape.head_dim;
          if (exact.Test(t)) {
            for (int c = 0; c < shape.head_dim; ++c) ASSERT_EQ(got[c], rows(t, h, c)) << "exact token " << t;
            continue;
          }
          const std::vector<double> want = page.Head(t, h);
          double row_magnitude = 0;
          for (int c = 0; c < shape.head_dim; ++c)
            row_magnitude += page.Read(h, t, c).magnitude / std::sqrt(shape.head_dim);
          for (int c = 0; c < shape.head_dim; ++c) {
            const double magnitude = page.layout().recipe.rotate ? row_magnitude : page.Read(h, t, c).magnitude;
            ASSERT_NEAR(got[c], want[c], Gamma(std::log2(shape.head_dim) + 8) * magnitude) << t << " " << h << " " << c;
          }
        }
      }
      for (const auto& [first, last] : {std::pair{0, 0}, {5, 6}, {15, 17}, {31, 97}, {127, 128}}) {
        const size_t count = static_cast<size_t>(last - first) * token_values;
        std::vector<float> part(count + 1, -1.0f);
        CpuBackend().Dequantize(page.layout(), view, first, last, part.data());
        EXPECT_EQ(part.back(), -1.0f) << "wrote past the end";
        EXPECT_TRUE(
            std::equal(part.begin(), part.end() - 1, all.begin() + first * static_cast<ptrdiff_t>(token_values)));
      }
    }
  });
}

// The stored page is close to its rows: 2-bit codes on data with structure stay below 35 % of the energy, 4-bit below 3 %.
TEST_P(SealTest, StaysCloseToTheRows) {
  OnEveryTarget([&] {
    const Rows rows = Rows::KeyLike(Shape(2), 42);
    const SealedPage page(LayoutOf(2), rows);
    double energy = 0;
    for (int t = 0; t < kPageTokens; ++t) {
      for (int h = 0; h < 2; ++h) {
        for (int c = 0; c < GetParam().head_dim; ++c) energy += double{rows(t, h, c)} * rows(t, h, c);
      }
    }
    energy /= kPageTokens * 2 * GetParam().head_dim;
    EXPECT_LT(MeanSquaredError(page, rows) / energy, page.layout().recipe.bits == 2 ? 0.35 : 0.03);
  });
}

TEST_P(SealTest, ExactTokensChangeNothing) {
  OnEveryTarget([&] {
    for (const TokenMask& exact : {FirstTokens(4), Scattered(), FirstTokens(127), FirstTokens(128)}) {
      Rows rows = Rows::KeyLike(Shape(2), 43);
      const std::vector<std::byte> before = SealedPage(LayoutOf(2), rows, exact).Bytes();
      for (int t = 0; t < kPageTokens; ++t) {
        for (int c = 0; exact.Test(t) && c < GetParam().head_dim; ++c)
          rows.SetBits(t, c % 2, c, c % 3 ? kLargest : kNaN);
      }
      const SealedPage after(LayoutOf(2), rows, exact);
      EXPECT_EQ(after.Bytes(), before);
      for (int t = 0; t < kPageTokens; ++t) {
        for (int c = 0; exact.Test(t) && c < GetParam().head_dim; ++c) ASSERT_EQ(after.Code(1, t, c), 0);
      }
      ExpectFinite(after);
    }
  });
}

TEST_P(SealTest, ValuesThatAreNotFiniteCountAsZero) {
  OnEveryTarget([&] {
    Rows bad = Rows::KeyLike(Shape(2), 44);
    Rows zero = bad;
    for (int i = 0; i < 40; ++i) {
      const int t = 3 * i;
      const int c = (7 * i) % GetParam().head_dim;
      bad.SetBits(t, i % 2, c, i % 3 == 0 ? kNaN : i % 3 == 1 ? kInfinity : static_cast<f16_bits>(kInfinity | 0x8000));
      zero.Set(t, i % 2, c, 0);
    }
    const SealedPage page(LayoutOf(2), bad);
    EXPECT_EQ(page.Bytes(), SealedPage(LayoutOf(2), zero).Bytes());
    ExpectFinite(page);
  });
}

TEST_P(SealTest, EveryByteIsWritten) {
  const Rows rows = Rows::KeyLike(Shape(3), 45);
  EXPECT_EQ(SealedPage(LayoutOf(3), rows, Scattered(), nullptr, 0x00).Bytes(),
            SealedPage(LayoutOf(3), rows, Scattered(), nullptr, 0xff).Bytes());
}

TEST_P(SealTest, ZeroPagesAreExact) {
  OnEveryTarget([&] {
    const SealedPage page(LayoutOf(2), Rows(Shape(2)));
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < GetParam().head_dim; ++c) ASSERT_EQ(page.Read(1, t, c).value, 0.0);
    }
  });
}

// All tokens alike, or one token left: what is stored is within a twentieth of the token's length of it (razor values keep the
// centre in eighths of an 8-bit scale). Groups along channels gain nothing from equal tokens: there it is their usual error.
TEST_P(SealTest, EqualTokensAreKept) {
  const bool along_channels = GetParam().recipe.substr(0, 5) != "razor" && GetParam().side == Side::kValue;
  const double limit = along_channels ? 0.6 : 0.05;
  OnEveryTarget([&] {
    for (const TokenMask& exact : {TokenMask{}, FirstTokens(127)}) {
      const Rows random = Rows::KeyLike(Shape(1), 46);
      Rows rows(Shape(1));
      for (int t = 0; t < kPageTokens; ++t) {
        for (int c = 0; c < GetParam().head_dim; ++c) rows.Set(t, 0, c, random(127, 0, c));
      }
      const SealedPage page(LayoutOf(1), rows, exact);
      const std::vector<double> want = rows.Head(127, 0, false);
      const std::vector<double> got = page.Head(127, 0);
      double error = 0;
      double square = 0;
      for (size_t c = 0; c < want.size(); ++c) {
        error += (got[c] - want[c]) * (got[c] - want[c]);
        square += want[c] * want[c];
      }
      EXPECT_LT(std::sqrt(error), limit * std::sqrt(square));
    }
  });
}

TEST_P(SealTest, ExtremesOfF16AreFinite) {
  OnEveryTarget([&] {
    std::mt19937 random(47);
    for (const bool one_left : {false, true}) {
      for (const auto& [common, rare] :
           {std::pair{kLargest, kLargest}, {kSmallest, kSmallest}, {kSmallest, kLargest}, {kLargest, kSmallest}}) {
        for (const bool signs : {false, true}) {
          Rows rows(Shape(2));
          for (int t = 0; t < kPageTokens; ++t) {
            for (int h = 0; h < 2; ++h) {
              for (int c = 0; c < GetParam().head_dim; ++c) {
                const f16_bits magnitude = random() % 16 == 0 ? rare : common;
                rows.SetBits(t, h, c, static_cast<f16_bits>(magnitude | (signs && random() % 2 ? 0x8000 : 0)));
              }
            }
          }
          ExpectFinite(SealedPage(LayoutOf(2), rows, FirstTokens(one_left ? 127 : 0)));
        }
      }
    }
  });
}

// Instruction sets differ in fused multiply-adds only: a code can differ where a value lies on the border of two levels.
TEST_P(SealTest, InstructionSetsAgree) {
  const Rows rows = Rows::KeyLike(Shape(2), 48);
  std::vector<SealedPage> pages;
  OnEveryTarget([&] { pages.emplace_back(LayoutOf(2), rows); });
  for (const SealedPage& page : pages) {
    int different = 0;
    for (int t = 0; t < kPageTokens; ++t) {
      for (int c = 0; c < GetParam().head_dim; ++c) different += page.Code(0, t, c) != pages.front().Code(0, t, c);
    }
    EXPECT_LE(different, kPageTokens * GetParam().head_dim / 1000);
  }
}

INSTANTIATE_TEST_SUITE_P(AllCodecs, SealTest, testing::ValuesIn(AllCases()), [](const auto& info) {
  std::string name =
      info.param.recipe + (info.param.side == Side::kKey ? "_k_" : "_v_") + std::to_string(info.param.head_dim);
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
});

TEST(DequantizeTest, ReadsRowsAsTheyAre) {
  OnEveryTarget([] {
    Rows rows = Rows::KeyLike({2, 32}, 49);
    rows.SetBits(3, 1, 5, kInfinity);
    PageSide view;
    view.rows = rows.data();
    std::vector<float> out(3 * 64);
    CpuBackend().Dequantize(Layout("f16", Side::kKey, {2, 32}), view, 2, 5, out.data());
    for (int t = 2; t < 5; ++t) {
      for (int h = 0; h < 2; ++h) {
        for (int c = 0; c < 32; ++c) ASSERT_EQ(out[(t - 2) * 64 + h * 32 + c], rows(t, h, c));
      }
    }
  });
}

TEST(DequantizeTest, RefusesMisuse) {
  const PageLayout layout = Layout("oscar", Side::kKey, {1, 64});
  const Rows rows({1, 64});
  const SealedPage page(layout, rows);
  std::vector<float> out(128 * 64);
  PageSide view;
  EXPECT_THROW(CpuBackend().Dequantize(layout, view, 0, 1, out.data()), Error);
  view.sealed = page.data();
  EXPECT_THROW(CpuBackend().Dequantize(layout, view, 0, 129, out.data()), Error);
  EXPECT_THROW(CpuBackend().Dequantize(layout, view, -1, 5, out.data()), Error);
  EXPECT_THROW(CpuBackend().Dequantize(layout, view, 5, 4, out.data()), Error);
  view.exact.Set(3);
  EXPECT_THROW(CpuBackend().Dequantize(layout, view, 0, 128, out.data()), Error);
}

TEST(SealMisuseTest, IsRefused) {
  const Rows rows({1, 64});
  const auto page = hwy::AllocateAligned<std::byte>(1 << 16);
  EXPECT_THROW(CpuBackend().Seal(Layout("f16", Side::kKey, {1, 64}), rows.data(), {}, nullptr, page.get()), Error);
  const PageLayout razor = Layout("razor-2", Side::kKey, {1, 64});
  EXPECT_THROW(CpuBackend().Seal(razor, rows.data(), {}, nullptr, page.get() + 4), Error);
  SecondMoment other({1, 128});
  other.set_count(1);
  EXPECT_THROW(CpuBackend().Seal(razor, rows.data(), {}, &other, page.get()), Error);
  SideRecipe turned = ParseRecipe("kivi").v;
  turned.axis = Axis::kPerChannel;
  EXPECT_THROW(CpuBackend().Seal(MakePageLayout(turned, Side::kValue, {1, 64}), rows.data(), {}, nullptr, page.get()),
               Error);
}

TEST(BackendTest, SaysWhatItIs) {
  EXPECT_STREQ(CpuBackend().name(), "cpu");
  EXPECT_FALSE(CpuBackend().description().empty());
}

}  // namespace
}  // namespace kvrazor::test
