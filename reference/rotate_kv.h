// RotateKV (arXiv:2501.16383) in float64: keys before RoPE, one token at a time.
#pragma once

#include <cstdint>
#include <vector>

#include "kvrazor/recipe.h"

namespace kvrazor::reference {

/// y_i = sum_j (-1)^popcount(i & j) x_j / sqrt(n), for runs of n values.
std::vector<double> RotateRuns(const std::vector<double>& x, int n);

/// Channels by ascending sum; of equal sums the lower channel first.
std::vector<int> RotateKvOrder(const std::vector<double>& sums);

struct RotateKvKey {
  std::vector<double> key;  ///< what comes back, before RoPE
  /// |key' - key|^2 of a computation in which values that lie as close to the border between two codes as `slack` steps
  /// were given the other code, and groups whose zero point does so the other zero point.
  double slack_square = 0;
};

/// One token there and back.
///   key    [channels of all heads] before RoPE; rotated keys are rounded to f16 before they are quantized
///   run    channels that are rotated together: heads of a run times head_dim
///   order  [channels]
RotateKvKey QuantizeRotateKv(const std::vector<double>& key, int run, const std::vector<int>& order,
                             const SideRecipe& recipe, double slack = 0);

/// RoPE of one head: value pairs turned by position * base^(-2 i / head_dim); pairs are neighbours, or half a head apart.
void RopeHead(double* x, int head_dim, double position, double base, bool neighbours);

/// Tokens behind the `count` largest |x|, ascending.  x [tokens][width]
std::vector<int64_t> MassiveTokens(const std::vector<double>& x, int64_t width, int count);

}  // namespace kvrazor::reference
