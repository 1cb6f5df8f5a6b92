#include "reference/dequantize.h"

#include <gtest/gtest.h>

#include <vector>

#include "reference/backend.h"
#include "reference/half.h"

namespace kvrazor::reference {
namespace {

TEST(Dequantize, ExactTokensAndRowsComeBackAsTheyWere) {
  const SideRecipe recipe = {.codec = Codec::kRazorKey, .bits = 2, .rotate = true};
  const PageLayout layout = MakePageLayout(recipe, Side::kKey, {2, 32});
  std::vector<f16_bits> rows(kPageTokens * 64);
  for (size_t i = 0; i < rows.size(); ++i) rows[i] = EncodeF16(static_cast<double>(i % 97) - 48);
  TokenMask exact;
  std::vector<f16_bits> exact_rows;
  for (const int t : {1, 64, 127}) {
    exact.Set(t);
    exact_rows.insert(exact_rows.end(), rows.begin() + t * 64, rows.begin() + (t + 1) * 64);
  }
  std::vector<std::byte> page(layout.page_bytes);
  ReferenceBackend().Seal(layout, rows.data(), exact, nullptr, page.data());
  const PageSide sealed = {.sealed = page.data(), .exact_rows = exact_rows.data(), .exact = exact};
  const PageSide open = {.rows = rows.data()};
  for (const int t : {1, 64, 127}) {
    for (int c = 0; c < 32; ++c) {
      EXPECT_EQ(DequantizeHead(layout, sealed, t, 1)[c].value, DecodeF16(rows[t * 64 + 32 + c]));
      EXPECT_EQ(DequantizeHead(layout, open, t, 1)[c].value, DecodeF16(rows[t * 64 + 32 + c]));
    }
  }
  std::vector<float> out(2 * 64);
  ReferenceBackend().Dequantize(layout, sealed, 63, 65, out.data());
  for (int i = 0; i < 64; ++i) EXPECT_EQ(out[64 + i], DecodeF16(rows[64 * 64 + i]));
  EXPECT_NEAR(out[0], DequantizeHead(layout, sealed, 63, 0)[0].value, 1e-5);
}

}  // namespace
}  // namespace kvrazor::reference
