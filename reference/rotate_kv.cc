#include "reference/rotate_kv.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "reference/half.h"
#include "reference/seal_affine.h"

namespace kvrazor::reference {
namespace {

/// How far x is from the border between the two integers around it.
double ToBorder(double x) { return std::abs(x - std::floor(x) - 0.5); }

}  // namespace

std::vector<double> RotateRuns(const std::vector<double>& x, int n) {
  std::vector<double> y(x.size());
  for (size_t first = 0; first < x.size(); first += static_cast<size_t>(n)) {
    for (unsigned i = 0; i < static_cast<unsigned>(n); ++i) {
      for (unsigned j = 0; j < static_cast<unsigned>(n); ++j)
        y[first + i] += (std::popcount(i & j) % 2 ? -1 : 1) * x[first + j];
      y[first + i] /= std::sqrt(static_cast<double>(n));
    }
  }
  return y;
}

std::vector<int> RotateKvOrder(const std::vector<double>& sums) {
  std::vector<int> order(sums.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return sums[a] < sums[b]; });
  return order;
}

RotateKvKey QuantizeRotateKv(const std::vector<double>& key, int run, const std::vector<int>& order,
                             const SideRecipe& recipe, double slack) {
  const std::vector<double> rotated = RotateRuns(key, run);
  std::vector<double> back(key.size());
  RotateKvKey result;
  for (size_t first = 0; first < order.size(); first += static_cast<size_t>(recipe.group_size)) {
    std::vector<double> group;
    for (size_t j = first; j < first + static_cast<size_t>(recipe.group_size); ++j)
      group.push_back(DecodeF16(EncodeFiniteF16(rotated[static_cast<size_t>(order[j])])));
    const AffineFit fit = FitAffine(group, recipe);
    const double scale = DecodeF16(EncodeFiniteF16(fit.scale)), offset = DecodeF16(EncodeFiniteF16(fit.offset));
    int near = ToBorder(fit.zero_unrounded) <= slack ? recipe.group_size : 0;
    for (size_t i = 0; i < group.size(); ++i) {
      const double argument = AffineCodeArgument(group[i], fit, recipe);
      back[static_cast<size_t>(order[first + i])] = scale * CodeOf(argument, recipe.bits) + offset;
      if (near < recipe.group_size) near += ToBorder(argument) <= slack * (1 + std::abs(argument));
    }
    result.slack_square += near * scale * scale;
  }
  result.key = RotateRuns(back, run);
  return result;
}

void RopeHead(double* x, int head_dim, double position, double base, bool neighbours) {
  for (int i = 0; i < head_dim / 2; ++i) {
    const double angle = position * std::pow(base, -2.0 * i / head_dim);
    double& a = x[neighbours ? 2 * i : i];
    double& b = x[neighbours ? 2 * i + 1 : i + head_dim / 2];
    const double turned = a * std::cos(angle) - b * std::sin(angle);
    b = a * std::sin(angle) + b * std::cos(angle);
    a = turned;
  }
}

std::vector<int64_t> MassiveTokens(const std::vector<double>& x, int64_t width, int count) {
  std::vector<int64_t> entries(x.size());
  std::iota(entries.begin(), entries.end(), 0);
  std::stable_sort(entries.begin(), entries.end(), [&](int64_t a, int64_t b) {
    return std::abs(x[static_cast<size_t>(a)]) > std::abs(x[static_cast<size_t>(b)]);
  });
  std::vector<int64_t> tokens;
  for (size_t i = 0; i < entries.size() && i < static_cast<size_t>(count); ++i) tokens.push_back(entries[i] / width);
  std::sort(tokens.begin(), tokens.end());
  tokens.erase(std::unique(tokens.begin(), tokens.end()), tokens.end());
  return tokens;
}

}  // namespace kvrazor::reference
