#include <limits>

#include "kvrazor/error.h"
#include "tests/backends/cpu/sealed_page.h"

namespace kvrazor::test {
namespace {

std::vector<float> RandomRows(int num_rows, int head_dim) {
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  std::vector<float> x(static_cast<size_t>(num_rows) * head_dim);
  for (float& v : x) v = normal(random);
  return x;
}

// log2(n) additions and one product a value: |got - want| <= Gamma(log2(n) + 2) * sum |x| / sqrt(n).
TEST(RotateTest, MatchesTheDefinition) {
  OnEveryTarget([] {
    for (const int head_dim : {32, 64, 128, 256, 512}) {
      for (const int num_rows : {0, 1, 7}) {
        const std::vector<float> x = RandomRows(num_rows, head_dim);
        std::vector<float> y(x.size() + 2, std::numeric_limits<float>::quiet_NaN());
        std::copy(x.begin(), x.end(), y.begin() + 1);  // not aligned
        CpuBackend().Rotate(y.data() + 1, num_rows, head_dim);
        EXPECT_TRUE(std::isnan(y.front()) && std::isnan(y.back()));
        for (int r = 0; r < num_rows; ++r) {
          const std::vector<double> row(x.begin() + r * head_dim, x.begin() + (r + 1) * head_dim);
          const std::vector<double> want = Rotated(row);
          double magnitude = 0;
          for (const double v : row) magnitude += std::abs(v) / std::sqrt(head_dim);
          for (int c = 0; c < head_dim; ++c) {
            ASSERT_NEAR(y[1 + r * head_dim + c], want[c], Gamma(std::log2(head_dim) + 2) * magnitude)
                << head_dim << " row " << r;
          }
        }
      }
    }
  });
}

TEST(RotateTest, IsItsOwnInverse) {
  OnEveryTarget([] {
    const std::vector<float> x = RandomRows(3, 64);
    std::vector<float> y = x;
    CpuBackend().Rotate(y.data(), 3, 64);
    EXPECT_NE(x, y);
    CpuBackend().Rotate(y.data(), 3, 64);
    for (size_t i = 0; i < x.size(); ++i) EXPECT_NEAR(x[i], y[i], 1e-5);
  });
}

TEST(RotateTest, RefusesOtherDimensions) {
  std::vector<float> x(96);
  EXPECT_THROW(CpuBackend().Rotate(x.data(), 1, 96), Error);
  EXPECT_THROW(CpuBackend().Rotate(x.data(), 1, 16), Error);
  EXPECT_THROW(CpuBackend().Rotate(x.data(), 1, 0), Error);
}

}  // namespace
}  // namespace kvrazor::test
