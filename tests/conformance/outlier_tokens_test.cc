// Outlier Tokens Tracing as its paper says it: the tokens that go to the pool are overwritten by the mean of the others, then the
// group is quantized as it is. Ours are left out of it instead; for everything that is read back this is the same.
#include <gtest/gtest.h>

#include <random>
#include <vector>

#include "reference/backend.h"
#include "reference/half.h"
#include "tests/conformance/cases.h"

namespace kvrazor::conformance {
namespace {

class OutlierTokensTest : public testing::TestWithParam<const char*> {};

INSTANTIATE_TEST_SUITE_P(All, OutlierTokensTest,
                         testing::Values("kivi", "kivi:k2g64", "kivi:k2g128,v2g64", "kivi:k4,v3"),
                         [](const auto& info) { return TestName(info.param); });

/// rows with the exact tokens of every group of tokens overwritten, channel by channel, by the mean of its others.
std::vector<f16_bits> OverwrittenByMeans(const std::vector<f16_bits>& rows, const TokenMask& exact, int group_tokens,
                                         int64_t row_values) {
  std::vector<f16_bits> result = rows;
  for (int first = 0; first < kPageTokens; first += group_tokens) {
    for (int64_t c = 0; c < row_values; ++c) {
      double sum = 0;
      int count = 0;
      for (int t = first; t < first + group_tokens; ++t) {
        if (exact.Test(t)) continue;
        sum += reference::DecodeF16(rows[static_cast<size_t>(t * row_values + c)]);
        ++count;
      }
      for (int t = first; t < first + group_tokens; ++t) {
        if (exact.Test(t)) result[static_cast<size_t>(t * row_values + c)] = reference::EncodeF16(sum / count);
      }
    }
  }
  return result;
}

TEST_P(OutlierTokensTest, LeavingTokensOutIsOverwritingThemByTheMean) {
  constexpr HeadShape kShape{2, 64};
  constexpr int64_t kWidth = 2 * 64;
  const Recipe recipe = ParseRecipe(GetParam());
  std::mt19937 random(8);
  for (const Backend* backend : {&CpuBackend(), &ReferenceBackend()}) {
    for (const Side side : {Side::kKey, Side::kValue}) {
      const PageLayout layout = MakePageLayout(side == Side::kKey ? recipe.k : recipe.v, side, kShape);
      const TestPage page = MakeTestPage(kShape, PageKind::kOutliers, random());
      TokenMask exact;
      for (const int t : {0, 7, 31, 32, 90, 91, 92, 127}) exact.Set(t);
      const std::vector<f16_bits> means = OverwrittenByMeans(page.rows, exact, recipe.k.group_size, kWidth);
      Guarded<std::byte> ours(layout.page_bytes, 0x55), papers(layout.page_bytes, 0xaa);
      backend->Seal(layout, page.rows.data(), exact, nullptr, ours.data());
      backend->Seal(layout, means.data(), TokenMask{}, nullptr, papers.data());
      for (int t = 0; t < kPageTokens; ++t) {
        if (exact.Test(t)) continue;
        std::vector<float> got(kWidth), want(kWidth);
        backend->Dequantize(layout, {.sealed = ours.data()}, t, t + 1, got.data());
        backend->Dequantize(layout, {.sealed = papers.data()}, t, t + 1, want.data());
        EXPECT_EQ(got, want) << "token " << t;
      }
    }
  }
}

}  // namespace
}  // namespace kvrazor::conformance
