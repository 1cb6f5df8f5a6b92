// Sealing a page of razor keys. Per kv head, y_t the rotated keys, L = 2^bits - 1, level l(code) = code - L/2:
//   1. mean   m_c = mean of y over the tokens that are not exact; mean_scale = f32(max |m| / 32767), stored
//             rne(m / mean_scale)
//   2. r_t    = y_t - a_t stored mean; a_t = 1, or with rank_one_mean the stored f16(<y_t, m> / <m, m>), m the stored
//             mean, 0 where <m, m> is 0
//   3. s_t    start 2 c max|r| / L for c = 1, .9, .. .6 (more than 2 bits: .. .8); two rounds of {codes of r / s;
//             s = <r, l> / <l, l>}; the s of least |r - s l|^2 (with the codes it came from), the first of equals
//   4. codes  for c = 0 .. D-1: x = r_c + sum_{i<c} W_ic e_i, code = clamp(rne(x / s + L/2), 0, L),
//             e_c = r_c - s l(code); A = M + 0.2 (tr M / D) I = G G^T, G upper triangular, W_ic = G_ic / G_cc
//   5. gain   g = r^T A r / r^T A r^, r^ = s l(codes), clamped to [0.7, 1.6]; 1 where r^T A r^ is not positive
//   6. stored s' = g s as e3m5 with base = 2^floor(log2(max of s' over the page and head))
// A is the identity while no query has been seen (M missing, empty, or without a positive, finite trace).
// r = 0: s' = 0, codes 0. Every s' of a head 0: base 0. Exact tokens: a 0, s' 0, codes 0; they take part in nothing.
#pragma once

#include <cstddef>
#include <vector>

#include "kvrazor/layout.h"
#include "reference/codes.h"
#include "src/ops/backend.h"

namespace kvrazor::reference {

/// A square matrix [dim][dim].
struct Matrix {
  explicit Matrix(int d) : dim(d), values(static_cast<size_t>(d) * d) {}
  double& operator()(int i, int j) { return values[static_cast<size_t>(i) * dim + j]; }
  double operator()(int i, int j) const { return values[static_cast<size_t>(i) * dim + j]; }
  int dim;
  std::vector<double> values;
};

/// A of step 4 for one kv head.
Matrix SealMetric(const SecondMoment* moment, int head, int head_dim);
/// A of step 4 taken apart: e^T A e = sum_c pivot_c (e_c + sum_{i<c} W_ic e_i)^2.
struct Feedback {
  Matrix weights;              ///< W, strictly upper triangular
  std::vector<double> pivots;  ///< G_cc^2
};
Feedback FactorMetric(const Matrix& metric);
/// x^T A y.
double Product(const Matrix& metric, const std::vector<double>& x, const std::vector<double>& y);

/// Step 1 without rounding.
std::vector<double> PageMean(const PageLayout& layout, const Rows& rows, const TokenMask& exact, int head);

/// a_t of step 2 with rank_one_mean, before it is stored.
double MeanFactor(const std::vector<double>& y, const std::vector<double>& mean);

/// One round of step 3: a scale and the squared error with the codes that it was fitted to.
struct ScaleCandidate {
  double scale;
  double error;
};
/// All rounds of step 3 in order; empty if r = 0.
std::vector<ScaleCandidate> RazorScaleCandidates(const std::vector<double>& r, int bits);

/// Step 4.
std::vector<int> FeedbackCodes(const std::vector<double>& r, double scale, const Matrix& weights, int bits);

/// Step 5 with the clamp.
double RazorGain(const std::vector<double>& r, double scale, const std::vector<int>& codes, const Matrix& metric,
                 int bits);

/// 2^floor(log2(largest)), 0 if largest is 0.
double ScaleBase(double largest);

void SealRazorKey(const PageLayout& layout, const Rows& rows, const TokenMask& exact, const SecondMoment* moment,
                  std::byte* page);

}  // namespace kvrazor::reference
