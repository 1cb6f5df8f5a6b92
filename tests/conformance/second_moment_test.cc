// AddQueries against float64. With e the error of a rotated query (see rotate_test), a product errs by (|q_i| + |q_j|)
// e, and the sum of n products by Gamma(n + 1) of their magnitude. What is stored beside the diagonal is a correlation of 16
// bits: each call rounds it by half a unit, 2^-16 of sqrt(M_ii M_jj), and about ten operations of float32 go into it and out.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "reference/rotate.h"
#include "reference/second_moment.h"
#include "tests/conformance/cases.h"

namespace kvrazor::conformance {
namespace {

struct MomentCase {
  HeadShape shape;
  int gqa_ratio;
  int qo_len;
  int stride;
};
constexpr MomentCase kCases[] = {{{1, 32}, 1, 1, 1},  {{2, 64}, 3, 5, 2},    {{3, 128}, 4, 33, 2},
                                 {{8, 64}, 1, 70, 1}, {{1, 256}, 8, 16, 16}, {{2, 128}, 1, 17, 16},
                                 {{1, 64}, 4, 65, 1}, {{2, 32}, 2, 0, 2}};

class SecondMomentTest : public testing::TestWithParam<int64_t> {};

/// Sum over the rows of 2 e max|q|, one number a kv head.
double RotationBound(const MomentCase& c, const QueryRows& q, int kv_head) {
  double bound = 0;
  for (int t = 0; t < c.qo_len; t += c.stride) {
    for (int i = 0; i < c.gqa_ratio; ++i) {
      const float* row = q.data + t * q.token_stride + (kv_head * c.gqa_ratio + i) * q.head_stride;
      std::vector<double> rotated(row, row + c.shape.head_dim);
      double sum = 0, largest = 0;
      for (const double x : rotated) sum += std::abs(x);
      if (!std::isfinite(sum)) continue;
      const double e = Gamma(std::log2(c.shape.head_dim) + 3) * sum / std::sqrt(static_cast<double>(c.shape.head_dim));
      reference::RotateHead(rotated.data(), c.shape.head_dim);
      for (const double x : rotated) largest = std::max(largest, std::abs(x));
      bound += 2 * e * (largest + e);
    }
  }
  return bound;
}

TEST_P(SecondMomentTest, MatchesFloat64) {
  const BackendOnTarget backend(GetParam());
  std::mt19937 random(5);
  std::normal_distribution<float> normal;
  for (const MomentCase& c : kCases) {
    const int num_qo_heads = c.shape.num_kv_heads * c.gqa_ratio;
    const int64_t head_stride = c.shape.head_dim + 3;  // rows need not be aligned or dense
    const int64_t token_stride = head_stride * num_qo_heads + 5;
    std::vector<float> data(static_cast<size_t>(token_stride * c.qo_len) + 1, std::numeric_limits<float>::quiet_NaN());
    for (int t = 0; t < c.qo_len; ++t) {
      for (int h = 0; h < num_qo_heads; ++h) {
        for (int i = 0; i < c.shape.head_dim; ++i)
          data[t * token_stride + h * head_stride + i] = (i == 3 ? 20 : 1) * normal(random);
      }
    }
    if (c.qo_len > 4) data[4 * token_stride] = std::numeric_limits<float>::infinity();  // left out
    const QueryRows q = {data.data(), token_stride, head_stride};
    SecondMoment moment(c.shape);
    backend->AddQueries(moment, q, c.qo_len, num_qo_heads, c.stride);
    const int64_t count = reference::QueryCount(c.shape, q, c.qo_len, num_qo_heads, c.stride);
    EXPECT_EQ(moment.count(), count);
    backend->AddQueries(moment, q, c.qo_len, num_qo_heads, c.stride);  // adds to what is there
    EXPECT_EQ(moment.count(), 2 * count);

    const std::vector<reference::Sum> want = reference::QueryMoment(c.shape, q, c.qo_len, num_qo_heads, c.stride);
    const int dim = c.shape.head_dim;
    for (int h = 0; h < c.shape.num_kv_heads; ++h) {
      const std::vector<float> got = moment.Square(h);
      const auto deviation = [&](int i) { return std::sqrt(2 * want[(int64_t{h} * dim + i) * dim + i].value); };
      const double rotation = 2 * RotationBound(c, q, h);
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) {
          const reference::Sum& x = want[(int64_t{h} * dim + i) * dim + j];
          const double stored = i == j ? 0.0 : (2 * 0x1p-16 * 32768 / 32767 + Gamma(20)) * deviation(i) * deviation(j);
          ASSERT_NEAR(got[i * dim + j], 2 * x.value, rotation + Gamma(2.0 * count + 2) * 2 * x.magnitude + stored);
          ASSERT_EQ(got[i * dim + j], got[j * dim + i]) << "not symmetric";
        }
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Cpu, SecondMomentTest, testing::ValuesIn(Targets()),
                         [](const auto& info) { return TargetName(info.param); });

}  // namespace
}  // namespace kvrazor::conformance
