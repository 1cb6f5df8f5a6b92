// Sealing a page with a codebook of the normal distribution (TurboQuant's "mse" quantizer with a matched norm). D = head_dim.
//   1. centroids  Lloyd-Max for N(0, 1): decision levels half way between neighbours, centroids the means between them
//   2. grid       centroid k -> steps_k - middle with integer steps from 0 to `top` <= 63, middle = top / 2: of all tops and of
//                 steps sizes c_last / middle * {0.900, 0.901, .., 1.100} the one of least mean squared error of N(0, 1) to its
//                 nearest level; of those within 1e-6 of each other the first
//   3. per token and head, y the (rotated) row: n = |y|, u = y sqrt(D) / (n step); code = how many midpoints between
//                 neighbouring grid levels are <= u; stored norm f16(n / |level(codes)|), saturated, level = steps - middle
// n = 0 and exact tokens: norm 0, codes 0. Read back as norm * level(code).
#pragma once

#include <cstddef>
#include <vector>

#include "kvrazor/layout.h"
#include "reference/codes.h"

namespace kvrazor::reference {

/// The levels of step 2 in grid steps from the middle, ascending, and the size of a step.
struct GridLevels {
  std::vector<double> levels;
  double step = 0;
};
std::vector<double> LloydMax(int bits);
GridLevels CodebookLevels(int bits);

/// Step 3 for one row: what is compared with the midpoints.
std::vector<double> CodebookArguments(const std::vector<double>& y, double step);
int CodebookCode(double argument, const GridLevels& grid);

void SealCodebook(const PageLayout& layout, const Rows& rows, const TokenMask& exact, std::byte* page);

}  // namespace kvrazor::reference
