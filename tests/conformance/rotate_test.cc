// Rotate against float64. A value is a sum of head_dim terms added pairwise (log2(head_dim) roundings on every path),
// times the rounded factor 1/sqrt(head_dim) (2 more, and 1 for the factor itself).
#include <gtest/gtest.h>

#include <cmath>

#include "reference/rotate.h"
#include "tests/conformance/cases.h"

namespace kvrazor::conformance {
namespace {

class RotateTest : public testing::TestWithParam<int64_t> {};

TEST_P(RotateTest, MatchesFloat64) {
  const BackendOnTarget backend(GetParam());
  std::mt19937 random(3);
  std::normal_distribution<float> normal;
  for (const int dim : {32, 64, 128, 256}) {
    for (const int num_rows : {1, 2, 3, 8, 17}) {
      Guarded<float> memory(num_rows * dim + 1, 0xff);
      float* x = memory.data() + 1;  // rows need not be aligned
      std::vector<double> want(static_cast<size_t>(num_rows) * dim);
      for (size_t i = 0; i < want.size(); ++i) want[i] = x[i] = (i % 37 == 5 ? 100 : 1) * normal(random);
      std::vector<double> bound;
      for (int r = 0; r < num_rows; ++r) {
        double sum = 0;
        for (int c = 0; c < dim; ++c) sum += std::abs(want[r * dim + c]);
        bound.push_back(Gamma(std::log2(dim) + 3) * sum / std::sqrt(static_cast<double>(dim)));
        reference::RotateHead(&want[static_cast<size_t>(r) * dim], dim);
      }
      backend->Rotate(x, num_rows, dim);
      for (size_t i = 0; i < want.size(); ++i) ASSERT_NEAR(x[i], want[i], bound[i / dim]) << dim << " value " << i;
      EXPECT_TRUE(std::isnan(memory[0]) && memory.intact());
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, RotateTest, testing::ValuesIn(Targets()),
                         [](const auto& info) { return TargetName(info.param); });

}  // namespace
}  // namespace kvrazor::conformance
