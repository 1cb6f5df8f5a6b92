#include "src/codecs/codebook.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

namespace kvrazor {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

double Density(double x) {
  return std::isinf(x) ? 0.0 : std::exp(-0.5 * x * x) * std::numbers::inv_sqrtpi / std::numbers::sqrt2;
}
double Below(double x) { return 0.5 * std::erfc(-x / std::numbers::sqrt2); }

/// Probability and mass (integral of x) of the cell of each level.
struct Cell {
  double probability;
  double moment;
};
std::vector<Cell> Cells(const std::vector<double>& levels) {
  std::vector<Cell> cells;
  double from = -kInfinity;
  for (size_t k = 0; k < levels.size(); ++k) {
    const double to = k + 1 < levels.size() ? (levels[k] + levels[k + 1]) / 2 : kInfinity;
    cells.push_back({Below(to) - Below(from), Density(from) - Density(to)});
    from = to;
  }
  return cells;
}

/// The centroids on the grid of this step, in steps from the middle: integers or integers and a half, as `top` is even or odd.
std::vector<double> OntoGrid(const std::vector<double>& centroids, double step, int top) {
  const double half = top % 2 == 0 ? 0.0 : 0.5;
  std::vector<double> grid;
  for (const double c : centroids) {
    const double size = std::max(half, std::nearbyint(std::abs(c) / step - half) + half);
    grid.push_back(std::copysign(std::min(size, 0.5 * top), c));
  }
  return grid;
}

Codebook MakeCodebook(int bits) {
  const std::vector<double> centroids = LloydMaxCentroids(bits);
  Codebook best;
  std::vector<double> best_grid;
  double least = kInfinity;
  for (int top = (1 << bits) - 1; top <= kMaxCodebookStep; ++top) {
    for (int share = 900; share <= 1100; ++share) {
      const double step = centroids.back() / (0.5 * top) * share / 1000;
      const std::vector<double> grid = OntoGrid(centroids, step, top);
      if (grid.back() != 0.5 * top) continue;
      std::vector<double> levels;
      for (const double x : grid) levels.push_back(x * step);
      const double error = GaussianDistortion(levels);
      if (!(error < least * (1 - 1e-6))) continue;  // differences that rounding could make are none
      least = error;
      best_grid = grid;
      best.step = step;
      best.middle = 0.5f * static_cast<float>(top);
    }
  }
  best.bits = bits;
  for (size_t k = 0; k < best_grid.size(); ++k) {
    best.steps[k] = static_cast<uint8_t>(std::lround(best_grid[k] + best.middle));
    if (k > 0) best.thresholds[k - 1] = static_cast<float>((best_grid[k - 1] + best_grid[k]) / 2);
  }
  return best;
}

}  // namespace

std::vector<double> LloydMaxCentroids(int bits) {
  const int size = 1 << bits;
  std::vector<double> centroids;
  for (int k = 0; k < size; ++k) centroids.push_back(4.0 * (k + 0.5) / size - 2);
  constexpr int kMaxRounds = 10000;
  for (int round = 0; round < kMaxRounds; ++round) {
    const std::vector<Cell> cells = Cells(centroids);
    double moved = 0;
    for (int k = 0; k < size; ++k) {
      const double mean = cells[static_cast<size_t>(k)].moment / cells[static_cast<size_t>(k)].probability;
      moved = std::max(moved, std::abs(mean - centroids[static_cast<size_t>(k)]));
      centroids[static_cast<size_t>(k)] = mean;
    }
    if (moved < 1e-13) break;
  }
  return centroids;
}

double GaussianDistortion(const std::vector<double>& levels) {
  double error = 1;
  const std::vector<Cell> cells = Cells(levels);
  for (size_t k = 0; k < levels.size(); ++k)
    error += levels[k] * levels[k] * cells[k].probability - 2 * levels[k] * cells[k].moment;
  return error;
}

const Codebook& GaussianCodebook(int bits) {
  static const Codebook books[] = {MakeCodebook(2), MakeCodebook(3), MakeCodebook(4)};
  return books[bits - 2];
}

}  // namespace kvrazor
