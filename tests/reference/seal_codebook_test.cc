#include "reference/seal_codebook.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

#include "reference/backend.h"
#include "reference/half.h"

namespace kvrazor::reference {
namespace {

// Max, "Quantizing for minimum distortion", 1960, table I.
TEST(Codebook, CentroidsAreMaxs) {
  const std::vector<double> two = LloydMax(2);
  EXPECT_NEAR(two[2], 0.4528, 5e-5);
  EXPECT_NEAR(two[3], 1.510, 5e-4);
  const std::vector<double> three = LloydMax(3);
  const double want[] = {0.2451, 0.7560, 1.344, 2.152};
  for (int k = 0; k < 4; ++k) {
    EXPECT_NEAR(three[4 + k], want[k], 5e-4) << k;
    EXPECT_EQ(three[3 - k], -three[4 + k]);
  }
  EXPECT_NEAR(LloydMax(4)[15], 2.733, 5e-4);
}

// 10/3 is within 0.1 % of the ratio of the 2-bit centroids: steps 0 7 13 20, middle 10.
TEST(Codebook, GridByHand) {
  const GridLevels grid = CodebookLevels(2);
  EXPECT_EQ(grid.levels, (std::vector<double>{-10, -3, 3, 10}));
  EXPECT_NEAR(grid.step, 1.510 / 10, 1e-4);
  EXPECT_EQ(CodebookCode(-6.5, grid), 1) << "at a decision level the code goes up";
  EXPECT_EQ(CodebookCode(-6.6, grid), 0);
  EXPECT_EQ(CodebookCode(0, grid), 2);
  EXPECT_EQ(CodebookCode(99, grid), 3);
}

// Not rotated, 32 channels: 8 of +-6, 24 of +-2 have norm sqrt(8 * 36 + 24 * 4) = sqrt(384), so u = x sqrt(32 / 384) / 0.151 =
// 1.912 x: 11.5 and 3.8, codes at the outer and inner levels; matched norm sqrt(384 / (8 * 100 + 24 * 9)).
TEST(Codebook, PageByHand) {
  const PageLayout layout = MakePageLayout({.codec = Codec::kCodebook, .bits = 2}, Side::kValue, {1, 32});
  EXPECT_EQ(layout.bits_per_value(), 2 + 16.0 / 32);
  std::vector<f16_bits> rows(kPageTokens * 32);
  const auto x = [](int t, int c) { return (c % 4 == 0 ? 6.0 : 2.0) * ((t + c) % 3 == 0 ? -1 : 1); };
  for (int t = 0; t < kPageTokens; ++t) {
    for (int c = 0; c < 32; ++c) rows[t * 32 + c] = EncodeF16(t == 9 ? 0.0 : x(t, c));
  }
  TokenMask exact;
  exact.Set(3);
  std::vector<std::byte> page(layout.page_bytes, std::byte{0xaa});
  ReferenceBackend().Seal(layout, rows.data(), exact, nullptr, page.data());
  for (int t = 0; t < kPageTokens; ++t) {
    const bool nothing = t == 3 || t == 9;
    EXPECT_EQ(GetU16(layout, page.data(), 0, layout.norm_at, t),
              nothing ? 0 : EncodeF16(std::sqrt(384.0 / (8 * 100 + 24 * 9))));
    for (int c = 0; c < 32; ++c) {
      const int sign = x(t, c) < 0 ? -1 : 1;
      const int want = c % 4 == 0 ? (sign < 0 ? 0 : 3) : (sign < 0 ? 1 : 2);
      EXPECT_EQ(GetCode(layout, page.data(), 0, t, c), nothing ? 0 : want) << t << " " << c;
    }
  }
}

}  // namespace
}  // namespace kvrazor::reference
