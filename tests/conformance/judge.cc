#include "tests/conformance/judge.h"

#include <cmath>

#include "reference/dequantize.h"
#include "reference/half.h"
#include "reference/rotate.h"
#include "reference/seal_affine.h"
#include "reference/seal_razor_key.h"
#include "tests/conformance/cases.h"

namespace kvrazor::conformance {

std::string Verdict::Text() const {
  std::string text = std::to_string(num_faults) + " faults";
  for (const std::string& fault : faults) text += "\n  " + fault;
  return text;
}

double RowError(const Trial& trial, int token, int head) {
  if (!trial.layout.recipe.rotate) return 0;
  const int dim = trial.layout.shape.head_dim;
  const f16_bits* row = trial.source + (int64_t{token} * trial.layout.shape.num_kv_heads + head) * dim;
  double sum = 0;
  for (int c = 0; c < dim; ++c) {
    const double x = reference::DecodeF16(row[c]);
    if (std::isfinite(x)) sum += std::abs(x);
  }
  return Gamma(std::log2(dim) + 3) * sum / std::sqrt(static_cast<double>(dim));
}

bool IsCodeNear(int code, double argument, double error, int bits) {
  return reference::CodeOf(argument - error, bits) <= code && code <= reference::CodeOf(argument + error, bits);
}

namespace {

/// What was lost of one head's row, in the rotated basis.
std::vector<double> Error(const Trial& trial, int token, int head) {
  const PageSide side = {.sealed = trial.page};
  std::vector<double> error;
  for (const reference::Sum& x : reference::DequantizeHead(trial.layout, side, token, head)) error.push_back(x.value);
  if (trial.layout.recipe.rotate) reference::RotateHead(error.data(), trial.layout.shape.head_dim);
  for (int c = 0; c < trial.layout.shape.head_dim; ++c) error[c] -= trial.rows(token, head, c);
  return error;
}

}  // namespace

double SquaredError(const Trial& trial) {
  double sum = 0;
  for (int t = 0; t < kPageTokens; ++t) {
    if (trial.exact.Test(t)) continue;
    for (int h = 0; h < trial.layout.shape.num_kv_heads; ++h) {
      for (const double e : Error(trial, t, h)) sum += e * e;
    }
  }
  return sum;
}

double MetricError(const Trial& trial) {
  double sum = 0;
  for (int h = 0; h < trial.layout.shape.num_kv_heads; ++h) {
    const reference::Matrix metric = reference::SealMetric(trial.moment, h, trial.layout.shape.head_dim);
    for (int t = 0; t < kPageTokens; ++t) {
      if (trial.exact.Test(t)) continue;
      const std::vector<double> e = Error(trial, t, h);
      sum += reference::Product(metric, e, e);
    }
  }
  return sum;
}

}  // namespace kvrazor::conformance
