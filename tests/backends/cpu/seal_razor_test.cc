#include <algorithm>

#include "tests/backends/cpu/sealed_page.h"

namespace kvrazor::test {
namespace {

SecondMoment Moment(HeadShape shape, unsigned seed) {
  SecondMoment moment(shape);
  const int num_qo_heads = 2 * shape.num_kv_heads;
  const std::vector<float> q = CorrelatedQueries(300, num_qo_heads, shape.head_dim, seed);
  CpuBackend().AddQueries(moment, {q.data(), num_qo_heads * shape.head_dim, shape.head_dim}, 300, num_qo_heads, 1);
  return moment;
}

/// x^T A y with A = M + 0.2 (tr M / D) I of one head, or the identity.
double InMetric(const SecondMoment* moment, int h, const std::vector<double>& x, const std::vector<double>& y) {
  const int n = static_cast<int>(x.size());
  double trace = 0;
  std::vector<float> m;
  if (moment) {
    m = moment->Square(h);
    for (int i = 0; i < n; ++i) trace += m[i * n + i];
  }
  double sum = 0;
  for (int i = 0; i < n; ++i) {
    sum += x[i] * y[i] * (moment ? 0.2 * trace / n : 1.0);
    for (int j = 0; moment && j < n; ++j) sum += x[i] * m[i * n + j] * y[j];
  }
  return sum;
}

/// r of a token (its key without the stored mean) and r^ as stored.
struct Residual {
  std::vector<double> r;
  std::vector<double> stored;
};
Residual ResidualOf(const SealedPage& page, const Rows& rows, int t, int h) {
  Residual x{rows.Head(t, h, true), {}};
  for (int c = 0; c < rows.shape().head_dim; ++c) {
    x.r[c] -= page.Mean(h, c);
    x.stored.push_back(page.KeyScale(h, t) * page.Level(h, t, c));
  }
  return x;
}

/// Sum over the page of e^T A e, e = r - r^.
double ErrorInMetric(const SealedPage& page, const Rows& rows, const SecondMoment& metric) {
  double sum = 0;
  for (int t = 0; t < kPageTokens; ++t) {
    for (int h = 0; h < rows.shape().num_kv_heads; ++h) {
      const Residual x = ResidualOf(page, rows, t, h);
      std::vector<double> e;
      for (size_t c = 0; c < x.r.size(); ++c) e.push_back(x.r[c] - x.stored[c]);
      sum += InMetric(&metric, h, e, e);
    }
  }
  return sum;
}

// Error feedback exists to lower the error that the queries see. On these queries it takes away far more than half.
TEST(SealRazorKeyTest, FeedbackLowersTheErrorThatQueriesSee) {
  OnEveryTarget([] {
    for (const int bits : {2, 4}) {
      for (const int head_dim : {32, 64, 128}) {
        const HeadShape shape = {2, head_dim};
        const Rows rows = Rows::KeyLike(shape, 21);
        const SecondMoment moment = Moment(shape, 22);
        const PageLayout layout = Layout("razor-2:k" + std::to_string(bits), Side::kKey, shape);
        const double with = ErrorInMetric(SealedPage(layout, rows, {}, &moment), rows, moment);
        const double without = ErrorInMetric(SealedPage(layout, rows), rows, moment);
        EXPECT_LT(with, 0.5 * without) << "bits " << bits << " head_dim " << head_dim;
      }
    }
  });
}

// The stored scale is g s with g = r^T A r / r^T A r^, so r^T A (stored r^) = r^T A r up to the rounding of s' to 5 mantissa
// bits (a relative 2^-6), where g is inside its clamp; on average the logits are not shrunk.
TEST(SealRazorKeyTest, GainIsUnbiased) {
  OnEveryTarget([] {
    const HeadShape shape = {2, 64};
    const Rows rows = Rows::KeyLike(shape, 23);
    const SecondMoment moment = Moment(shape, 24);
    const SecondMoment* const no_queries = nullptr;
    for (const SecondMoment* metric : {&moment, no_queries}) {
      const SealedPage page(Layout("razor-2", Side::kKey, shape), rows, {}, metric);
      double sum = 0;
      int inside = 0;
      for (int t = 0; t < kPageTokens; ++t) {
        for (int h = 0; h < 2; ++h) {
          const Residual x = ResidualOf(page, rows, t, h);
          const double ratio = InMetric(metric, h, x.r, x.stored) / InMetric(metric, h, x.r, x.r);
          sum += ratio;
          inside += std::abs(ratio - 1) < 0x1p-6 + 1e-4;
        }
      }
      EXPECT_NEAR(sum / 256, 1.0, 0.003);
      EXPECT_GE(inside, 250);
    }
  });
}

// Without queries the codes are the nearest levels of a scale close to the best one for the token: no scale on a fine grid
// gives less than 0.99 of the squared error (before the gain: the least squares scale for the stored codes).
TEST(SealRazorKeyTest, ScaleIsNearTheBest) {
  OnEveryTarget([] {
    const HeadShape shape = {1, 64};
    const Rows rows = Rows::KeyLike(shape, 25);
    const SealedPage page(Layout("razor-2", Side::kKey, shape), rows);
    double got = 0;
    double best = 0;
    for (int t = 0; t < kPageTokens; ++t) {
      const Residual x = ResidualOf(page, rows, t, 0);
      double rr = 0, rl = 0, ll = 0;
      for (int c = 0; c < 64; ++c) {
        rr += x.r[c] * x.r[c];
        rl += x.r[c] * page.Level(0, t, c);
        ll += page.Level(0, t, c) * page.Level(0, t, c);
      }
      got += rr - rl * rl / ll;
      double least = INFINITY;
      for (double s = 0.05; s < 8; s *= 1.01) {
        double error = 0;
        for (const double r : x.r) error += std::pow(std::abs(r) - s * (std::abs(r) > s ? 1.5 : 0.5), 2);
        least = std::min(least, error);
      }
      best += least;
    }
    EXPECT_LE(best, got * 1.001);
    EXPECT_LE(got, best * 1.01);
  });
}

TEST(SealRazorKeyTest, MeanIsStoredIn16Bits) {
  OnEveryTarget([] {
    const HeadShape shape = {2, 64};
    const Rows rows = Rows::KeyLike(shape, 26);
    const TokenMask exact = FirstTokens(4);
    const SealedPage page(Layout("razor-2", Side::kKey, shape), rows, exact);
    for (int h = 0; h < 2; ++h) {
      std::vector<double> mean(64);
      for (int t = 4; t < kPageTokens; ++t) {
        const std::vector<double> y = rows.Head(t, h, true);
        for (int c = 0; c < 64; ++c) mean[c] += y[c] / 124;
      }
      double largest = 0;
      for (const double m : mean) largest = std::max(largest, std::abs(m));
      for (int c = 0; c < 64; ++c) EXPECT_NEAR(page.Mean(h, c), mean[c], largest * (0.5 / 32767 + Gamma(140)));
    }
  });
}

TEST(SealRazorKeyTest, AnEmptyMomentIsNone) {
  const HeadShape shape = {2, 64};
  const Rows rows = Rows::KeyLike(shape, 27);
  const SecondMoment empty(shape);
  const PageLayout layout = Layout("razor-2", Side::kKey, shape);
  EXPECT_EQ(SealedPage(layout, rows, {}, &empty).Bytes(), SealedPage(layout, rows).Bytes());
}

// Queries of any size give the same metric; the codes follow its direction only. (A power of four scales M exactly.)
TEST(SealRazorKeyTest, TheScaleOfQueriesDoesNotMatter) {
  OnEveryTarget([] {
    const HeadShape shape = {1, 64};
    const Rows rows = Rows::KeyLike(shape, 28);
    const SecondMoment moment = Moment(shape, 29);
    const PageLayout layout = Layout("razor-2", Side::kKey, shape);
    const std::vector<std::byte> want = SealedPage(layout, rows, {}, &moment).Bytes();
    for (const float factor : {0x1p-60f, 0x1p60f}) {
      SecondMoment scaled = moment;
      for (int i = 0; i < 64; ++i) scaled.variances(0)[i] *= factor;
      EXPECT_EQ(SealedPage(layout, rows, {}, &scaled).Bytes(), want);
    }
    for (const float bad : {0.0f, INFINITY, NAN}) {  // says nothing: as without queries
      SecondMoment broken = moment;
      for (int i = 0; i < 64; ++i) broken.variances(0)[i] *= bad;
      EXPECT_EQ(SealedPage(layout, rows, {}, &broken).Bytes(), SealedPage(layout, rows).Bytes());
    }
  });
}

// One direction seen by all queries: M of rank 1, the worst conditioned metric there is.
TEST(SealRazorKeyTest, RankOneMoment) {
  OnEveryTarget([] {
    for (const int head_dim : {32, 128, 256}) {
      const HeadShape shape = {1, head_dim};
      std::vector<float> q(static_cast<size_t>(head_dim), 1.0f);
      q[1] = 100;
      SecondMoment moment(shape);
      for (int i = 0; i < 50; ++i) CpuBackend().AddQueries(moment, {q.data(), head_dim, head_dim}, 1, 1, 1);
      const Rows rows = Rows::KeyLike(shape, 30);
      const PageLayout layout = Layout("razor-2", Side::kKey, shape);
      const double with = ErrorInMetric(SealedPage(layout, rows, {}, &moment), rows, moment);
      const double without = ErrorInMetric(SealedPage(layout, rows), rows, moment);
      EXPECT_LT(with, without);
    }
  });
}

TEST(SealRazorValueTest, NormsAndNearestLevels) {
  OnEveryTarget([] {
    for (const int bits : {2, 4}) {
      const HeadShape shape = {2, 64};
      const Rows rows = Rows::KeyLike(shape, 31);
      const SealedPage page(Layout("razor-2:v" + std::to_string(bits), Side::kValue, shape), rows);
      for (int t = 0; t < kPageTokens; ++t) {
        for (int h = 0; h < 2; ++h) {
          const std::vector<double> y = rows.Head(t, h, true);
          double square = 0;
          for (const double v : y) square += v * v;
          ASSERT_NEAR(page.Norm(h, t), std::sqrt(square), std::sqrt(square) * 0x1.001p-4);
          for (int c = 0; c < 64; ++c) {
            double nearest = INFINITY;
            for (int code = 0; code < 1 << bits; ++code) {
              const double value = page.Centre(h, c) + page.ValueScale(h, c) * (code - 0.5 * ((1 << bits) - 1));
              nearest = std::min(nearest, std::abs(y[c] - page.Norm(h, t) * value));
            }
            ASSERT_NEAR(std::abs(y[c] - page.Read(h, t, c).value), nearest, 1e-5 * std::sqrt(square));
          }
        }
      }
    }
  });
}

// Least squares over a page of 128 is close to the best 2-bit quantizer with equal steps for N(0, 1), 0.1188; the rows of equal
// norm that a rotation leaves and 8-bit parameters add a few per cent.
TEST(SealRazorValueTest, ErrorOnNormalData) {
  const HeadShape shape = {8, 128};
  const Rows rows = Rows::Normal(shape, 32);
  const double error = MeanSquaredError(SealedPage(Layout("razor-2", Side::kValue, shape), rows), rows);
  EXPECT_GT(error, 0.1175);
  EXPECT_LT(error, 0.125);
}

}  // namespace
}  // namespace kvrazor::test
