// Dequantize against float64, from the same bytes. A stored value is a handful of operations on exact parameters (at
// most 6 roundings), then a rotation's sum; 16-bit rows come back exactly.
#include <gtest/gtest.h>

#include <cmath>

#include "reference/backend.h"
#include "reference/dequantize.h"
#include "tests/conformance/cases.h"

namespace kvrazor::conformance {
namespace {

struct Range {
  int first;
  int last;
};
constexpr Range kRanges[] = {{0, 128}, {0, 0}, {0, 1}, {127, 128}, {15, 17}, {16, 32}, {31, 97}, {63, 65}, {1, 127}};

class DequantizeTest : public testing::TestWithParam<std::string> {
 protected:
  static void Check(const PageLayout& layout, PageKind kind) {
    const TestPage page = MakeTestPage(layout.shape, kind, 11);
    Guarded<std::byte> sealed(layout.page_bytes, 0);
    ReferenceBackend().Seal(layout, page.rows.data(), page.exact, page.moment_or_null(), sealed.data());
    const PageSide side = {.sealed = sealed.data(), .exact_rows = page.exact_rows.data(), .exact = page.exact};
    std::vector<std::vector<reference::Sum>> want;
    for (int t = 0; t < kPageTokens; ++t) {
      for (int h = 0; h < layout.shape.num_kv_heads; ++h) want.push_back(reference::DequantizeHead(layout, side, t, h));
    }
    for (const int64_t target : Targets()) {
      const BackendOnTarget backend(target);
      for (const Range range : kRanges) {
        SCOPED_TRACE(TargetName(target) + ", " + KindName(kind) + ", tokens from " + std::to_string(range.first));
        Guarded<float> out((range.last - range.first) * layout.row_values(), 0xff);
        backend->Dequantize(layout, side, range.first, range.last, out.data());
        ASSERT_TRUE(out.intact());
        Compare(layout, page.exact, want, range, out);
      }
    }
  }

  static void Compare(const PageLayout& layout, const TokenMask& exact,
                      const std::vector<std::vector<reference::Sum>>& want, Range range, const Guarded<float>& out) {
    const int dim = layout.shape.head_dim;
    const double roundings = 6 + (layout.recipe.rotate ? std::log2(dim) + 3 : 0);
    for (int64_t i = 0; i < out.size(); ++i) {
      const int64_t row = int64_t{range.first} * layout.shape.num_kv_heads + i / dim;
      const reference::Sum& x = want[row][i % dim];
      const bool is_exact = exact.Test(static_cast<int>(row / layout.shape.num_kv_heads));
      if (std::isnan(x.value) && is_exact) continue;
      ASSERT_LE(std::abs(out.data()[i] - x.value), is_exact ? 0.0 : Gamma(roundings) * x.magnitude)
          << "row " << row << " channel " << i % dim;
    }
  }
};

TEST_P(DequantizeTest, MatchesFloat64) {
  const Recipe recipe = ParseRecipe(GetParam());
  for (const Side side : {Side::kKey, Side::kValue}) {
    const SideRecipe& side_recipe = side == Side::kKey ? recipe.k : recipe.v;
    for (const HeadShape shape : Shapes(GetParam(), side_recipe)) {
      if (shape.num_kv_heads == 8 && shape.head_dim > 64) continue;  // nothing new, and slow
      SCOPED_TRACE(ShapeName(shape) + (side == Side::kKey ? " keys" : " values"));
      for (const PageKind kind : {PageKind::kOutliers, PageKind::kExact})
        Check(MakePageLayout(side_recipe, side, shape), kind);
    }
  }
}

INSTANTIATE_TEST_SUITE_P(All, DequantizeTest, testing::ValuesIn(SealedRecipes()),
                         [](const auto& info) { return TestName(info.param); });

TEST(DequantizeRows, AreTheSameNumbers) {
  const PageLayout layout = MakePageLayout({}, Side::kKey, {3, 96});  // any head_dim in 16 bits
  const TestPage page = MakeTestPage({3, 96}, PageKind::kExact, 12);
  const PageSide side = {.rows = page.rows.data()};
  for (const int64_t target : Targets()) {
    const BackendOnTarget backend(target);
    for (const Range range : kRanges) {
      Guarded<float> out((range.last - range.first) * layout.row_values(), 0xff);
      backend->Dequantize(layout, side, range.first, range.last, out.data());
      ASSERT_TRUE(out.intact());
      for (int64_t i = 0; i < out.size(); ++i) {
        const int64_t at = range.first * layout.row_values() + i;
        const double want = reference::DequantizeHead(layout, side, static_cast<int>(at / 288),
                                                      static_cast<int>(at % 288 / 96))[at % 96]
                                .value;
        if (std::isnan(want))
          EXPECT_TRUE(std::isnan(out[i]));
        else
          ASSERT_EQ(out[i], want) << i;
      }
    }
  }
}

}  // namespace
}  // namespace kvrazor::conformance
