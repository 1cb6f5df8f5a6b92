#include "reference/seal_codebook.h"

#include <algorithm>
#include <cmath>
#include <numbers>

#include "reference/half.h"

namespace kvrazor::reference {
namespace {

constexpr int kMostSteps = 63;

double Phi(double x) { return 0.5 * (1 + std::erf(x / std::sqrt(2.0))); }
double Pdf(double x) { return std::exp(-x * x / 2) / std::sqrt(2 * std::numbers::pi); }

/// Mean squared error of N(0, 1) to the nearest of these levels, cell by cell: the integral of (x - l)^2 over [a, b] is
/// (1 + l^2) (Phi(b) - Phi(a)) - (b - 2 l) pdf(b) + (a - 2 l) pdf(a).
double Distortion(const std::vector<double>& levels) {
  double sum = 0;
  for (size_t k = 0; k < levels.size(); ++k) {
    const double l = levels[k];
    const bool first = k == 0, last = k + 1 == levels.size();
    const double a = first ? 0 : (levels[k - 1] + l) / 2;
    const double b = last ? 0 : (l + levels[k + 1]) / 2;
    sum += (1 + l * l) * ((last ? 1 : Phi(b)) - (first ? 0 : Phi(a)));
    sum += (first ? 0 : (a - 2 * l) * Pdf(a)) - (last ? 0 : (b - 2 * l) * Pdf(b));
  }
  return sum;
}

}  // namespace

std::vector<double> LloydMax(int bits) {
  const int size = 1 << bits;
  // By symmetry the positive half suffices: x_0 = 0 < x_1 < .. bound its cells.
  std::vector<double> half;
  for (int k = 0; k < size / 2; ++k) half.push_back((k + 0.5) * 4 / size);
  for (int round = 0; round < 20000; ++round) {
    std::vector<double> next;
    for (size_t k = 0; k < half.size(); ++k) {
      const double a = k == 0 ? 0 : (half[k - 1] + half[k]) / 2;
      const bool last = k + 1 == half.size();
      const double b = last ? 0 : (half[k] + half[k + 1]) / 2;
      next.push_back((Pdf(a) - (last ? 0 : Pdf(b))) / ((last ? 1 : Phi(b)) - Phi(a)));
    }
    half = next;
  }
  std::vector<double> all(half.rbegin(), half.rend());
  for (double& x : all) x = -x;
  all.insert(all.end(), half.begin(), half.end());
  return all;
}

GridLevels CodebookLevels(int bits) {
  const std::vector<double> centroids = LloydMax(bits);
  GridLevels best;
  double least = INFINITY;
  for (int top = (1 << bits) - 1; top <= kMostSteps; ++top) {
    for (int thousandths = 900; thousandths <= 1100; ++thousandths) {
      const double step = centroids.back() / (top / 2.0) * thousandths / 1000;
      std::vector<double> steps, levels;
      for (const double c : centroids) {
        // The nearest whole number of steps from the lowest level; the two halves mirror each other.
        const double from_middle = std::abs(c) / step;
        double size = top % 2 == 0 ? RoundHalfEven(from_middle) : RoundHalfEven(from_middle - 0.5) + 0.5;
        size = std::clamp(size, top % 2 == 0 ? 0.0 : 0.5, top / 2.0);
        steps.push_back(c < 0 ? -size : size);
        levels.push_back(steps.back() * step);
      }
      if (steps.back() != top / 2.0) continue;
      const double error = Distortion(levels);
      if (error >= least * (1 - 1e-6)) continue;
      least = error;
      best = {steps, step};
    }
  }
  return best;
}

std::vector<double> CodebookArguments(const std::vector<double>& y, double step) {
  double square = 0;
  for (const double x : y) square += x * x;
  std::vector<double> u;
  for (const double x : y) u.push_back(square > 0 ? x * std::sqrt(static_cast<double>(y.size()) / square) / step : 0.0);
  return u;
}

int CodebookCode(double argument, const GridLevels& grid) {
  int code = 0;
  for (size_t k = 0; k + 1 < grid.levels.size(); ++k) code += argument >= (grid.levels[k] + grid.levels[k + 1]) / 2;
  return code;
}

void SealCodebook(const PageLayout& layout, const Rows& rows, const TokenMask& exact, std::byte* page) {
  static const GridLevels grids[] = {CodebookLevels(2), CodebookLevels(3), CodebookLevels(4)};
  const GridLevels& grid = grids[layout.recipe.bits - 2];
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    for (int t = 0; t < kPageTokens; ++t) {
      if (exact.Test(t)) continue;
      const std::vector<double> y = rows.Row(t, h);
      double square = 0;
      for (const double x : y) square += x * x;
      if (!(square > 0)) continue;
      const std::vector<double> u = CodebookArguments(y, grid.step);
      double level_square = 0;
      std::vector<int> codes;
      for (const double x : u) {
        codes.push_back(CodebookCode(x, grid));
        level_square += std::pow(grid.levels[static_cast<size_t>(codes.back())], 2);
      }
      const uint16_t norm = EncodeFiniteF16(std::sqrt(square / level_square));
      if (norm == 0) continue;
      SetU16(layout, page, h, layout.norm_at, t, norm);
      for (size_t c = 0; c < codes.size(); ++c) SetCode(layout, page, h, t, static_cast<int>(c), codes[c]);
    }
  }
}

}  // namespace kvrazor::reference
