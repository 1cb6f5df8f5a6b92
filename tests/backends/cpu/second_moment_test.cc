#include <limits>

#include "kvrazor/error.h"
#include "tests/backends/cpu/sealed_page.h"

namespace kvrazor::test {
namespace {

/// M of one kv head in float64 and, beside it, the sum of the absolute products.
struct Moment {
  std::vector<double> value;
  std::vector<double> magnitude;
};

Moment PlainMoment(const std::vector<float>& q, int qo_len, int num_qo_heads, int head_dim, int stride, int kv_head,
                   int ratio) {
  Moment m{std::vector<double>(head_dim * head_dim), std::vector<double>(head_dim * head_dim)};
  for (int t = 0; t < qo_len; t += stride) {
    for (int h = kv_head * ratio; h < (kv_head + 1) * ratio; ++h) {
      const auto row = q.begin() + (static_cast<ptrdiff_t>(t) * num_qo_heads + h) * head_dim;
      const std::vector<double> x = Rotated({row, row + head_dim});
      double length = 0;
      for (const double v : x) length += v * v;
      for (int i = 0; i < head_dim; ++i) {
        for (int j = 0; j < head_dim; ++j) {
          m.value[i * head_dim + j] += x[i] * x[j];
          m.magnitude[i * head_dim + j] += length;  // >= what rotating |q| gives, squared, up to sqrt(head_dim) below
        }
      }
    }
  }
  return m;
}

// A rotated value has an error of Gamma(log2 D + 2) * sum|q| / sqrt(D) <= Gamma(..) * |q|, a product twice that beside |q|^2, and
// the sum adds one rounding a row: all within Gamma(2 log2 D + 6 + rows) * sum |q|^2. Correlations are stored in 16 bits: half
// a unit of 2^-15 of sqrt(M_ii M_jj) more.
TEST(SecondMomentTest, MatchesFloat64) {
  OnEveryTarget([] {
    for (const int head_dim : {32, 64, 128}) {
      for (const int qo_len : {1, 2, 7, 65}) {
        for (const int stride : {1, 2, 3}) {
          const int num_qo_heads = 6;
          const HeadShape shape = {2, head_dim};
          const std::vector<float> q = CorrelatedQueries(qo_len, num_qo_heads, head_dim, 11);
          SecondMoment moment(shape);
          CpuBackend().AddQueries(moment, {q.data(), num_qo_heads * head_dim, head_dim}, qo_len, num_qo_heads, stride);
          const int rows = (qo_len + stride - 1) / stride * 3;
          EXPECT_EQ(moment.count(), rows);
          for (int h = 0; h < 2; ++h) {
            const Moment want = PlainMoment(q, qo_len, num_qo_heads, head_dim, stride, h, 3);
            const std::vector<float> got = moment.Square(h);
            for (int i = 0; i < head_dim * head_dim; ++i) {
              const int row = i / head_dim, column = i % head_dim;
              const double stored =
                  row == column
                      ? 0.0
                      : 0x1.001p-16 * std::sqrt(want.value[row * (head_dim + 1)] * want.value[column * (head_dim + 1)]);
              ASSERT_NEAR(got[i], want.value[i],
                          Gamma(2 * std::log2(head_dim) + 6 + rows + 10) * want.magnitude[i] + stored);
            }
          }
        }
      }
    }
  });
}

// One token at a time, far beyond the number of rows after which old ones are halved. Each call rounds a correlation by at most
// half a unit, in directions of their own: the sum of n such errors, each with a variance of 1/12 unit^2 at most, stays within 6
// standard deviations of sqrt(n / 12) units; what is far back counts less, but never more than all calls. If single rows were
// lost in the rounding, the second half, with another direction, would not be seen.
TEST(SecondMomentTest, ManySmallStepsNeitherVanishNorDrift) {
  OnEveryTarget([] {
    constexpr int kDim = 32, kTokens = 24576;
    const HeadShape shape = {1, kDim};
    const std::vector<float> first = CorrelatedQueries(kTokens, 1, kDim, 15);
    std::vector<float> second = CorrelatedQueries(kTokens, 1, kDim, 16);
    std::reverse(second.begin(), second.end());  // another direction
    SecondMoment moment(shape);
    std::vector<double> want(kDim * kDim);
    int64_t count = 0;
    for (int t = 0; t < 2 * kTokens; ++t) {
      const std::vector<float>& q = t < kTokens ? first : second;
      const auto row = q.begin() + static_cast<ptrdiff_t>(t % kTokens) * kDim;
      CpuBackend().AddQueries(moment, {&*row, kDim, kDim}, 1, 1, 1);
      const std::vector<double> x = Rotated({row, row + kDim});
      for (int i = 0; i < kDim * kDim; ++i) want[i] += x[i / kDim] * x[i % kDim];
      if (++count > SecondMoment::kMostRows) {
        count /= 2;
        for (double& w : want) w /= 2;
      }
    }
    EXPECT_EQ(moment.count(), count);
    EXPECT_LE(moment.count(), SecondMoment::kMostRows);
    const std::vector<float> got = moment.Square(0);
    const double drift = 6 * std::sqrt(2 * kTokens / 12.0) / SecondMoment::kOne;
    for (int i = 0; i < kDim; ++i) {
      for (int j = 0; j < kDim; ++j) {
        const double most = std::sqrt(want[i * (kDim + 1)] * want[j * (kDim + 1)]);
        ASSERT_NEAR(got[i * kDim + j], want[i * kDim + j], (drift + Gamma(2 * kTokens)) * most);
      }
    }
  });
}

TEST(SecondMomentTest, SaveAndLoadKeepEveryBit) {
  const HeadShape shape = {3, 64};
  const std::vector<float> q = CorrelatedQueries(50, 3, 64, 17);
  SecondMoment moment(shape), loaded(shape);
  CpuBackend().AddQueries(moment, {q.data(), 3 * 64, 64}, 50, 3, 1);
  std::vector<std::byte> bytes(static_cast<size_t>(moment.bytes()));
  EXPECT_EQ(moment.bytes(), 3 * (64 * 4 + 64 * 63 / 2 * 2));
  moment.Save(bytes);
  loaded.Load(bytes, moment.count());
  EXPECT_EQ(loaded.count(), 50);
  for (int h = 0; h < 3; ++h) EXPECT_EQ(loaded.Square(h), moment.Square(h));
}

TEST(SecondMomentTest, ReadsStrides) {
  const int head_dim = 32;
  const std::vector<float> q = CorrelatedQueries(9, 2, head_dim, 13);
  // The same queries, head-major and with a gap of NaN between tokens.
  const int token_stride = head_dim + 5;
  std::vector<float> spread(static_cast<size_t>(2 * 9 * token_stride), std::numeric_limits<float>::quiet_NaN());
  for (int t = 0; t < 9; ++t) {
    for (int h = 0; h < 2; ++h) {
      std::copy_n(q.begin() + (t * 2 + h) * head_dim, head_dim, spread.begin() + (h * 9 + t) * token_stride);
    }
  }
  SecondMoment a({1, head_dim});
  SecondMoment b({1, head_dim});
  CpuBackend().AddQueries(a, {q.data(), 2 * head_dim, head_dim}, 9, 2, 1);
  CpuBackend().AddQueries(b, {spread.data(), token_stride, 9 * token_stride}, 9, 2, 1);
  EXPECT_EQ(a.Square(0), b.Square(0));
}

TEST(SecondMomentTest, LeavesOutRowsThatAreNotFinite) {
  OnEveryTarget([] {
    const int head_dim = 64;
    std::vector<float> q = CorrelatedQueries(3, 1, head_dim, 14);
    SecondMoment want({1, head_dim});
    CpuBackend().AddQueries(want, {q.data(), head_dim, head_dim}, 1, 1, 1);
    q[head_dim + 3] = std::numeric_limits<float>::quiet_NaN();
    q[2 * head_dim + 60] = std::numeric_limits<float>::infinity();
    SecondMoment got({1, head_dim});
    CpuBackend().AddQueries(got, {q.data(), head_dim, head_dim}, 3, 1, 1);
    EXPECT_EQ(got.count(), 1);
    EXPECT_EQ(got.Square(0), want.Square(0));
  });
}

TEST(SecondMomentTest, RefusesImpossibleShapes) {
  std::vector<float> q(64 * 4);
  SecondMoment moment({2, 64});
  EXPECT_THROW(CpuBackend().AddQueries(moment, {q.data(), 64, 64}, 1, 3, 1), Error);
  EXPECT_THROW(CpuBackend().AddQueries(moment, {q.data(), 64, 64}, 1, 2, 0), Error);
  EXPECT_THROW(CpuBackend().AddQueries(moment, {q.data(), 64, 64}, -1, 2, 1), Error);
  SecondMoment none;
  EXPECT_THROW(CpuBackend().AddQueries(none, {q.data(), 64, 64}, 1, 2, 1), Error);
}

}  // namespace
}  // namespace kvrazor::test
