#include "eval/distribution.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();

std::vector<float> Logs(std::initializer_list<double> p) {
  std::vector<float> logs;
  for (const double x : p) logs.push_back(static_cast<float>(std::log(x)));
  return logs;
}

// By hand: p = (1/2, 1/4, 1/4), q = (1/4, 1/4, 1/2): 1/2 ln 2 + 1/4 ln 1 + 1/4 ln 1/2 = 1/4 ln 2.
// Each float log is within 2^-24 |log| of the real one, p within 2^-23, so the sum of 3 terms is within 1e-6.
TEST(DistributionTest, KlDivergenceByHand) {
  EXPECT_NEAR(KlDivergence(Logs({0.5, 0.25, 0.25}), Logs({0.25, 0.25, 0.5})), 0.25 * std::log(2.0), 1e-6);
  EXPECT_NEAR(KlDivergence(Logs({0.25, 0.25, 0.5}), Logs({0.5, 0.25, 0.25})), 0.25 * std::log(2.0), 1e-6);
  // 0.9 ln(0.9 / 0.5) + 0.1 ln(0.1 / 0.5), not symmetric: 0.5 ln(0.5 / 0.9) + 0.5 ln(0.5 / 0.1)
  EXPECT_NEAR(KlDivergence(Logs({0.9, 0.1}), Logs({0.5, 0.5})), 0.3680642, 1e-6);
  EXPECT_NEAR(KlDivergence(Logs({0.5, 0.5}), Logs({0.9, 0.1})), 0.5108256, 1e-6);
}

TEST(DistributionTest, KlDivergenceOfEqualAndImpossible) {
  EXPECT_EQ(KlDivergence(Logs({0.3, 0.7}), Logs({0.3, 0.7})), 0);
  EXPECT_EQ(KlDivergence(std::vector<float>{0, -kInf}, std::vector<float>{0, -kInf}), 0);  // p = 0 adds nothing
  EXPECT_EQ(KlDivergence(std::vector<float>{std::log(0.5f), std::log(0.5f)}, std::vector<float>{0, -kInf}),
            double{kInf});
}

TEST(DistributionTest, LogSumExpDoesNotOverflow) {
  EXPECT_NEAR(LogSumExp(std::vector<float>{1000, 1000}), 1000 + std::log(2.0), 1e-9);
  EXPECT_NEAR(LogSumExp(std::vector<float>{-1000, -1000}), -1000 + std::log(2.0), 1e-9);
  EXPECT_NEAR(LogSumExp(std::vector<float>{0, -kInf}), 0, 1e-12);
  EXPECT_EQ(LogSumExp(std::vector<float>{}), -double{kInf});
  EXPECT_EQ(LogSumExp(std::vector<float>{-kInf, -kInf}), -double{kInf});
}

TEST(DistributionTest, LogSoftmaxSumsToOneAndMayWorkInPlace) {
  std::mt19937 random(3);
  std::normal_distribution<float> normal(0, 5);
  std::vector<float> x(50000);
  for (float& v : x) v = normal(random);
  std::vector<float> logs(x.size());
  LogSoftmax(x, logs);
  double sum = 0;
  for (const float l : logs) sum += std::exp(double{l});
  EXPECT_NEAR(sum, 1, 1e-5);  // each log is rounded to within 2^-24 * 40, exp keeps that as a relative error
  LogSoftmax(x, x);
  EXPECT_EQ(x, logs);
}

TEST(DistributionTest, Quantile) {
  EXPECT_DOUBLE_EQ(Quantile({3, 1, 2}, 0.5), 2);
  EXPECT_DOUBLE_EQ(Quantile({4, 1, 2, 3}, 0.5), 2.5);
  EXPECT_DOUBLE_EQ(Quantile({4, 1, 2, 3}, 0), 1);
  EXPECT_DOUBLE_EQ(Quantile({4, 1, 2, 3}, 1), 4);
  std::vector<double> hundred_one;
  for (int i = 0; i <= 100; ++i) hundred_one.push_back(i);
  EXPECT_DOUBLE_EQ(Quantile(hundred_one, 0.99), 99);
  EXPECT_DOUBLE_EQ(Quantile({7}, 0.99), 7);
  EXPECT_THROW(Quantile({}, 0.5), Error);
}

TEST(DistributionTest, ArgMaxTakesTheFirstOfEquals) {
  EXPECT_EQ(ArgMax(std::vector<float>{1, 3, 3, 2}), 1);
  EXPECT_EQ(ArgMax(std::vector<float>{-5}), 0);
}

TEST(DistributionTest, AgreementByHand) {
  // KLD 1/4 ln 2, next token has 1/4, other top; KLD 0, next token has 1/2, same top
  const std::vector<PositionAgreement> positions = {
      ComparePosition(7, Logs({0.5, 0.25, 0.25}), Logs({0.25, 0.25, 0.5}), 1),
      ComparePosition(9, Logs({0.5, 0.25, 0.25}), Logs({0.5, 0.25, 0.25}), 0)};
  EXPECT_EQ(positions[0].position, 7);
  const Agreement a = Summarize(positions);
  EXPECT_EQ(a.positions, 2);
  EXPECT_NEAR(a.ppl, std::sqrt(8.0), 1e-5);          // exp of the mean of ln 4 and ln 2
  EXPECT_NEAR(a.nll_se, 0.5 * std::log(2.0), 1e-6);  // two values that differ by d: standard error of the mean d / 2
  EXPECT_NEAR(a.kld_mean, std::log(2.0) / 8, 1e-6);
  EXPECT_NEAR(a.kld_se, std::log(2.0) / 8, 1e-6);
  EXPECT_NEAR(a.kld_median, std::log(2.0) / 8, 1e-6);
  EXPECT_NEAR(a.kld_p99, 0.99 * std::log(2.0) / 4, 1e-6);
  EXPECT_NEAR(a.kld_p999, 0.999 * std::log(2.0) / 4, 1e-6);
  EXPECT_NEAR(a.kld_max, std::log(2.0) / 4, 1e-6);
  EXPECT_EQ(a.worst_index, 0);
  EXPECT_EQ(a.same_top1, 0.5);
}

TEST(DistributionTest, WithoutAReferenceOnlyTheLikelihoodCounts) {
  const PositionAgreement p = ComparePosition(3, {}, Logs({0.25, 0.75}), 0);
  EXPECT_NEAR(p.nll, std::log(4.0), 1e-6);
  EXPECT_EQ(p.kld, 0);
  const Agreement a = Summarize(std::span(&p, 1));
  EXPECT_NEAR(a.ppl, 4, 1e-5);
  EXPECT_EQ(a.nll_se, 0);  // one value says nothing about the spread
}

TEST(DistributionTest, AgreementRefusesMisuse) {
  EXPECT_THROW(Summarize({}), Error);
  EXPECT_THROW(ComparePosition(0, Logs({0.5, 0.5}), Logs({1}), 0), Error);
  EXPECT_THROW(ComparePosition(0, Logs({0.5, 0.5}), Logs({0.5, 0.5}), 2), Error);
  EXPECT_THROW(ComparePosition(0, Logs({0.5, 0.5}), Logs({0.5, 0.5}), -1), Error);
}

}  // namespace
}  // namespace kvrazor::eval
