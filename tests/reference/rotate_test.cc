#include "reference/rotate.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

namespace kvrazor::reference {
namespace {

TEST(RotateHead, FourChannelsByHand) {
  double x[] = {1, 2, 3, 4};
  RotateHead(x, 4);
  EXPECT_DOUBLE_EQ(x[0], 5);
  EXPECT_DOUBLE_EQ(x[1], -1);
  EXPECT_DOUBLE_EQ(x[2], -2);
  EXPECT_DOUBLE_EQ(x[3], 0);
}

// H_ij = (-1)^popcount(i & j) / sqrt(n).
TEST(RotateHead, EqualsTheMatrixAndIsItsOwnInverse) {
  std::mt19937 random(1);
  std::normal_distribution<double> normal;
  for (const int n : {32, 64, 128, 256}) {
    std::vector<double> x(n);
    for (double& v : x) v = normal(random);
    std::vector<double> y = x;
    RotateHead(y.data(), n);
    for (int i = 0; i < n; ++i) {
      double want = 0;
      for (int j = 0; j < n; ++j) want += (__builtin_popcount(i & j) % 2 ? -x[j] : x[j]) / std::sqrt(n);
      EXPECT_NEAR(y[i], want, 1e-13) << n << " channel " << i;
    }
    RotateHead(y.data(), n);
    for (int i = 0; i < n; ++i) EXPECT_NEAR(y[i], x[i], 1e-14);
  }
}

}  // namespace
}  // namespace kvrazor::reference
