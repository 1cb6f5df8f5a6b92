// The metric in which razor keys are sealed: A = M D / tr M + 0.2 I, M the second moment of the queries, and its factor.
//
//   A = G G^T, G upper triangular (reverse Cholesky), so e^T A e = sum_c d_c (e_c + sum_{i<c} w_ci e_i)^2
//   d_c = G_cc^2,  w_ci = G_ic / G_cc: row c of `weights` says what channel c must correct for the errors of channels before it.
// Scaling A changes neither the codes nor the gain; tr A / D = 1.2 keeps f32 in range (condition number below 5 D + 1).
// Eliminates four pivots at a time: a row i loses sum_j w_ji A_j before its own turn; D^3/3 flops, each load and store of the
// matrix serves four of them.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_QUERY_METRIC_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_QUERY_METRIC_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_QUERY_METRIC_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_QUERY_METRIC_INL_H_
#endif

#include <algorithm>
#include <cmath>
#include <cstddef>

#include "hwy/highway.h"
#include "src/backends/cpu/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr float kDamping = 0.2f;

/// Row i, columns [0, length): minus factor times `pivot`. Up to a vector more is touched (unused columns of the row).
HWY_INLINE void SubtractScaled(const float* HWY_RESTRICT pivot, float factor, size_t length, float* HWY_RESTRICT row) {
  const TagF32 d;
  const auto f = hn::Set(d, factor);
  for (size_t k = 0; k < length; k += hn::Lanes(d)) {
    hn::Store(hn::NegMulAdd(f, hn::Load(d, pivot + k), hn::Load(d, row + k)), d, row + k);
  }
}

/// The same with four pivot rows, [4][n].
HWY_INLINE void SubtractScaled4(const float* HWY_RESTRICT pivots, size_t n, const float* HWY_RESTRICT factors,
                                size_t length, float* HWY_RESTRICT row) {
  const TagF32 d;
  const auto f0 = hn::Set(d, factors[0]);
  const auto f1 = hn::Set(d, factors[1]);
  const auto f2 = hn::Set(d, factors[2]);
  const auto f3 = hn::Set(d, factors[3]);
  for (size_t k = 0; k < length; k += hn::Lanes(d)) {
    auto x = hn::Load(d, row + k);
    x = hn::NegMulAdd(f3, hn::Load(d, pivots + 3 * n + k), x);
    x = hn::NegMulAdd(f2, hn::Load(d, pivots + 2 * n + k), x);
    x = hn::NegMulAdd(f1, hn::Load(d, pivots + n + k), x);
    x = hn::NegMulAdd(f0, hn::Load(d, pivots + k), x);
    hn::Store(x, d, row + k);
  }
}

/// Factor of one head's metric. False if M says nothing (zero or not finite): then A = I.
///   moment    [n][n] symmetric (the lower triangle is read)
///   weights   [n][n]: row c holds w_c0 .. w_c,c-1; the rest of a row is scratch
///   diagonal  [n]
HWY_INLINE bool FactorMetric(const float* HWY_RESTRICT moment, size_t n, float* HWY_RESTRICT weights,
                             float* HWY_RESTRICT diagonal) {
  const TagF32 d;
  float trace = 0;
  for (size_t c = 0; c < n; ++c) trace += moment[c * n + c];
  const float scale = static_cast<float>(n) / trace;
  if (!(trace > 0) || !std::isfinite(trace) || !std::isfinite(scale)) return false;
  for (size_t i = 0; i < n; ++i) {
    for (size_t k = 0; k <= i; k += hn::Lanes(d)) {
      hn::Store(hn::Mul(hn::LoadU(d, moment + i * n + k), hn::Set(d, scale)), d, weights + i * n + k);
    }
    weights[i * n + i] += kDamping;
  }
  for (size_t top = n; top > 0; top -= 4) {  // pivots top-1 .. top-4
    const size_t first = top - 4;
    float inverse[4];
    for (size_t j = top; j-- > first;) {
      // A positive definite matrix keeps its pivots above the damping; rounding may not.
      const float pivot = std::max(weights[j * n + j], 0.5f * kDamping);
      diagonal[j] = pivot;
      inverse[j - first] = 1.0f / pivot;
      for (size_t i = first; i < j; ++i)
        SubtractScaled(weights + j * n, weights[j * n + i] * inverse[j - first], i + 1, weights + i * n);
    }
    for (size_t i = 0; i < first; ++i) {
      float factors[4];
      for (size_t j = 0; j < 4; ++j) factors[j] = weights[(first + j) * n + i] * inverse[j];
      SubtractScaled4(weights + first * n, n, factors, i + 1, weights + i * n);
    }
    for (size_t j = first; j < top; ++j) {
      const auto f = hn::Set(d, inverse[j - first]);
      for (size_t k = 0; k < j; k += hn::Lanes(d))
        hn::Store(hn::Mul(hn::Load(d, weights + j * n + k), f), d, weights + j * n + k);
    }
  }
  return true;
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_QUERY_METRIC_INL_H_
