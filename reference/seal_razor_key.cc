#include "reference/seal_razor_key.h"

#include <algorithm>
#include <cmath>

#include "reference/half.h"
#include "reference/seal_affine.h"

namespace kvrazor::reference {
namespace {

constexpr double kDamping = 0.2;
constexpr double kLeastGain = 0.7;
constexpr double kMostGain = 1.6;
constexpr int kRounds = 2;

double LevelOf(int code, int bits) { return code - 0.5 * ((1 << bits) - 1); }

/// The page's mean of one head as it is read back.
std::vector<double> StoreMean(const PageLayout& layout, const Rows& rows, const TokenMask& exact, int head,
                              std::byte* page) {
  std::vector<double> mean = PageMean(layout, rows, exact, head);
  double largest = 0;
  for (const double m : mean) largest = std::max(largest, std::abs(m));
  const float scale = static_cast<float>(largest / 32767);
  SetHeadScalar(layout, page, head, 0, scale);
  for (int c = 0; c < layout.shape.head_dim; ++c) {
    const double steps = scale > 0 ? std::clamp(RoundHalfEven(mean[c] / scale), -32767.0, 32767.0) : 0.0;
    SetU16(layout, page, head, layout.mean_at, c, static_cast<uint16_t>(static_cast<int16_t>(steps)));
    mean[c] = steps * scale;
  }
  return mean;
}

/// Codes and gained scale s' of one token.
struct SealedKey {
  std::vector<int> codes;
  double scale = 0;
};

SealedKey SealToken(const std::vector<double>& r, const Matrix& metric, const Matrix& weights, int bits) {
  const std::vector<ScaleCandidate> candidates = RazorScaleCandidates(r, bits);
  if (candidates.empty()) return {std::vector<int>(r.size(), 0), 0.0};
  const double scale = std::min_element(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
                         return a.error < b.error;
                       })->scale;
  SealedKey key;
  key.codes = FeedbackCodes(r, scale, weights, bits);
  key.scale = scale * RazorGain(r, scale, key.codes, metric, bits);
  return key;
}

}  // namespace

Matrix SealMetric(const SecondMoment* moment, int head, int head_dim) {
  Matrix metric(head_dim);
  double trace = 0;
  std::vector<float> square;
  if (moment && !moment->empty()) {
    square = moment->Square(head);
    for (int i = 0; i < head_dim; ++i) trace += square[i * head_dim + i];
  }
  const bool seen = trace > 0 && std::isfinite(trace);
  for (int i = 0; i < head_dim; ++i) {
    for (int j = 0; j < head_dim; ++j) {
      const double identity = i == j ? 1.0 : 0.0;
      metric(i, j) = seen ? square[i * head_dim + j] + kDamping * (trace / head_dim) * identity : identity;
    }
  }
  return metric;
}

Feedback FactorMetric(const Matrix& metric) {
  const int n = metric.dim;
  Matrix g(n);
  for (int j = n - 1; j >= 0; --j) {
    double pivot = metric(j, j);
    for (int k = j + 1; k < n; ++k) pivot -= g(j, k) * g(j, k);
    g(j, j) = std::sqrt(pivot);
    for (int i = 0; i < j; ++i) {
      double sum = metric(i, j);
      for (int k = j + 1; k < n; ++k) sum -= g(i, k) * g(j, k);
      g(i, j) = sum / g(j, j);
    }
  }
  Feedback feedback{Matrix(n), {}};
  for (int i = 0; i < n; ++i) {
    feedback.pivots.push_back(g(i, i) * g(i, i));
    for (int c = i + 1; c < n; ++c) feedback.weights(i, c) = g(i, c) / g(c, c);
  }
  return feedback;
}

double Product(const Matrix& metric, const std::vector<double>& x, const std::vector<double>& y) {
  double sum = 0;
  for (int i = 0; i < metric.dim; ++i) {
    double row = 0;
    for (int j = 0; j < metric.dim; ++j) row += metric(i, j) * y[j];
    sum += x[i] * row;
  }
  return sum;
}

std::vector<double> PageMean(const PageLayout& layout, const Rows& rows, const TokenMask& exact, int head) {
  std::vector<double> mean(static_cast<size_t>(layout.shape.head_dim));
  const int num_tokens = kPageTokens - exact.Count();
  if (num_tokens == 0) return mean;
  for (int c = 0; c < layout.shape.head_dim; ++c) {
    for (int t = 0; t < kPageTokens; ++t) mean[c] += exact.Test(t) ? 0.0 : rows(t, head, c);
    mean[c] /= num_tokens;
  }
  return mean;
}

double MeanFactor(const std::vector<double>& y, const std::vector<double>& mean) {
  double along = 0;
  double square = 0;
  for (size_t c = 0; c < y.size(); ++c) {
    along += y[c] * mean[c];
    square += mean[c] * mean[c];
  }
  return square > 0 ? along / square : 0.0;
}

std::vector<ScaleCandidate> RazorScaleCandidates(const std::vector<double>& r, int bits) {
  std::vector<ScaleCandidate> candidates;
  double largest = 0;
  for (const double x : r) largest = std::max(largest, std::abs(x));
  if (largest == 0) return candidates;
  const int last_tenth = bits > 2 ? 8 : 6;
  for (int tenths = 10; tenths >= last_tenth; --tenths) {
    double scale = 2 * (tenths / 10.0) * largest / ((1 << bits) - 1);
    for (int round = 0; round < kRounds; ++round) {
      double r_level = 0;
      double level_level = 0;
      std::vector<double> levels;
      for (const double x : r) {
        levels.push_back(LevelOf(CodeOf(x / scale + 0.5 * ((1 << bits) - 1), bits), bits));
        r_level += x * levels.back();
        level_level += levels.back() * levels.back();
      }
      scale = r_level / level_level;  // > 0: a level has the sign of its value or sits beside 0 on a tie
      double error = 0;
      for (size_t c = 0; c < r.size(); ++c) error += (r[c] - scale * levels[c]) * (r[c] - scale * levels[c]);
      candidates.push_back({scale, error});
    }
  }
  return candidates;
}

std::vector<int> FeedbackCodes(const std::vector<double>& r, double scale, const Matrix& weights, int bits) {
  const int n = static_cast<int>(r.size());
  std::vector<int> codes;
  std::vector<double> errors;
  for (int c = 0; c < n; ++c) {
    double x = r[c];
    for (int i = 0; i < c; ++i) x += weights(i, c) * errors[i];
    codes.push_back(CodeOf(x / scale + 0.5 * ((1 << bits) - 1), bits));
    errors.push_back(r[c] - scale * LevelOf(codes[c], bits));
  }
  return codes;
}

double RazorGain(const std::vector<double>& r, double scale, const std::vector<int>& codes, const Matrix& metric,
                 int bits) {
  std::vector<double> read;
  for (const int code : codes) read.push_back(scale * LevelOf(code, bits));
  const double overlap = Product(metric, r, read);
  if (!(overlap > 0)) return 1.0;
  return std::clamp(Product(metric, r, r) / overlap, kLeastGain, kMostGain);
}

double ScaleBase(double largest) { return largest > 0 ? std::ldexp(1.0, std::ilogb(largest)) : 0.0; }

void SealRazorKey(const PageLayout& layout, const Rows& rows, const TokenMask& exact, const SecondMoment* moment,
                  std::byte* page) {
  const int dim = layout.shape.head_dim;
  const int bits = layout.recipe.bits;
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    const std::vector<double> mean = StoreMean(layout, rows, exact, h, page);
    const Matrix metric = SealMetric(moment, h, dim);
    const Matrix weights = FactorMetric(metric).weights;
    std::vector<double> scales(kPageTokens, 0.0);
    for (int t = 0; t < kPageTokens; ++t) {
      if (exact.Test(t)) continue;
      std::vector<double> r = rows.Row(t, h);
      double factor = 1;
      if (layout.recipe.rank_one_mean) {
        const uint16_t stored = EncodeFiniteF16(MeanFactor(r, mean) + 0.0);
        SetU16(layout, page, h, layout.mean_factor_at, t, stored);
        factor = DecodeF16(stored);
      }
      for (int c = 0; c < dim; ++c) r[c] -= factor * mean[c];
      const SealedKey key = SealToken(r, metric, weights, bits);
      scales[t] = key.scale;
      for (int c = 0; c < dim; ++c) SetCode(layout, page, h, t, c, key.codes[c]);
    }
    const double base = ScaleBase(*std::max_element(scales.begin(), scales.end()));
    SetHeadScalar(layout, page, h, 1, static_cast<float>(base));
    for (int t = 0; t < kPageTokens; ++t) SetU8(layout, page, h, layout.scale_at, t, EncodeE3M5(scales[t], base));
  }
}

}  // namespace kvrazor::reference
