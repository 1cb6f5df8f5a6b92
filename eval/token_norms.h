// How unequal the norms of a layer's tokens are, and what that does to quantized keys (OScaR, arXiv:2605.19660).
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "eval/key_capture.h"

namespace kvrazor::eval {

inline constexpr int kNormGroup = 32;  ///< consecutive tokens that share a scale per channel

/// L2 norm of each token over one head; head -1: over all heads.
std::vector<double> TokenNorms(const StoredRows& rows, int64_t head);

/// Means over groups of kNormGroup tokens (a last, shorter group is left out), and the worst group.
struct NormSpread {
  double max_over_median = 0, max_over_median_worst = 0;
  double median_over_min = 0, median_over_min_worst = 0;
};
/// Throws Error if there is not one whole group.
NormSpread SpreadOf(std::span<const double> norms);

/// Tokens whose norm is below half or above twice the median of all, ascending.
std::vector<int64_t> Outliers(std::span<const double> norms);

/// What is done to keys before each channel of a group gets its scale and offset.
struct KeyTreatment {
  bool rotate = false;       ///< Hadamard rotation of each head; CanRotate(head_dim) must hold
  bool token_scale = false;  ///< each token is divided by its norm over all heads
};
/// Head sizes that can be rotated: powers of two from 32 to 4096.
bool CanRotate(int64_t head_dim);

/// |x| after the treatment as [channels][tokens], of one head or, head -1, of all heads one after the other.
std::vector<float> Magnitudes(const StoredRows& rows, KeyTreatment treatment, int64_t head);

/// Error of `bits`-bit codes, minimum and maximum of each channel over kNormGroup tokens, as the mean over all tokens of
/// |error|^2 / |key|^2 over all heads: small tokens count as much as large ones. Throws Error without a whole group.
double KeyError(const StoredRows& keys, KeyTreatment treatment, int bits);

}  // namespace kvrazor::eval
