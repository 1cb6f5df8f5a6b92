#include "eval/token_norms.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>

#include "eval/distribution.h"
#include "kvrazor/error.h"
#include "src/ops/backend.h"

namespace kvrazor::eval {
namespace {

int64_t WholeGroups(int64_t tokens) {
  if (tokens < kNormGroup)
    throw Error(fmt::format("{} tokens are less than one group of {}. Give a longer text.", tokens, kNormGroup));
  return tokens / kNormGroup;
}

double Ratio(double numerator, double denominator) { return denominator > 0 ? numerator / denominator : 0; }

// The first `tokens` rows with every head rotated.
std::vector<float> RotatedRows(const StoredRows& rows, int64_t tokens) {
  if (!CanRotate(rows.head_dim))
    throw Error(
        fmt::format("heads of {} values cannot be rotated; a power of two from 32 to 4096 is needed.", rows.head_dim));
  std::vector<float> x(rows.values.begin(), rows.values.begin() + tokens * rows.num_heads * rows.head_dim);
  CpuBackend().Rotate(x.data(), tokens * rows.num_heads, static_cast<int>(rows.head_dim));
  return x;
}

}  // namespace

bool CanRotate(int64_t head_dim) {
  return std::has_single_bit(static_cast<uint64_t>(head_dim)) && head_dim >= 32 && head_dim <= 4096;
}

std::vector<double> TokenNorms(const StoredRows& rows, int64_t head) {
  std::vector<double> norms;
  const int64_t width = rows.num_heads * rows.head_dim;
  const int64_t first = head < 0 ? 0 : head * rows.head_dim, count = head < 0 ? width : rows.head_dim;
  for (int64_t t = 0; t < rows.num_tokens(); ++t) {
    double sum = 0;
    for (int64_t c = first; c < first + count; ++c) {
      const double x = rows.values[static_cast<size_t>(t * width + c)];
      sum += x * x;
    }
    norms.push_back(std::sqrt(sum));
  }
  return norms;
}

NormSpread SpreadOf(std::span<const double> norms) {
  const int64_t groups = WholeGroups(std::ssize(norms));
  NormSpread spread;
  for (int64_t g = 0; g < groups; ++g) {
    const auto begin = norms.begin() + g * kNormGroup;
    const std::vector<double> group(begin, begin + kNormGroup);
    const auto [low, high] = std::minmax_element(group.begin(), group.end());
    const double median = Quantile(group, 0.5);
    const double up = Ratio(*high, median), down = Ratio(median, *low);
    spread.max_over_median += up / static_cast<double>(groups);
    spread.median_over_min += down / static_cast<double>(groups);
    spread.max_over_median_worst = std::max(spread.max_over_median_worst, up);
    spread.median_over_min_worst = std::max(spread.median_over_min_worst, down);
  }
  return spread;
}

std::vector<int64_t> Outliers(std::span<const double> norms) {
  std::vector<int64_t> outliers;
  if (norms.empty()) return outliers;
  const double median = Quantile({norms.begin(), norms.end()}, 0.5);
  for (int64_t t = 0; t < std::ssize(norms); ++t) {
    const double norm = norms[static_cast<size_t>(t)];
    if (norm < 0.5 * median || norm > 2 * median) outliers.push_back(t);
  }
  return outliers;
}

std::vector<float> Magnitudes(const StoredRows& rows, KeyTreatment treatment, int64_t head) {
  const int64_t tokens = rows.num_tokens(), width = rows.num_heads * rows.head_dim;
  const int64_t first = head < 0 ? 0 : head * rows.head_dim, channels = head < 0 ? width : rows.head_dim;
  const std::vector<double> norms = TokenNorms(rows, -1);
  const std::vector<float> x = treatment.rotate ? RotatedRows(rows, tokens) : rows.values;
  std::vector<float> magnitudes(static_cast<size_t>(channels * tokens));
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t c = 0; c < channels; ++c) {
      const double value = std::abs(x[static_cast<size_t>(t * width + first + c)]);
      magnitudes[static_cast<size_t>(c * tokens + t)] =
          static_cast<float>(treatment.token_scale ? Ratio(value, norms[static_cast<size_t>(t)]) : value);
    }
  }
  return magnitudes;
}

double KeyError(const StoredRows& keys, KeyTreatment treatment, int bits) {
  const int64_t tokens = WholeGroups(keys.num_tokens()) * kNormGroup, width = keys.num_heads * keys.head_dim;
  const std::vector<double> norms = TokenNorms(keys, -1);  // a rotation keeps them
  const std::vector<float> x = treatment.rotate ? RotatedRows(keys, tokens) : keys.values;
  const double levels = static_cast<double>((1 << bits) - 1);
  std::vector<double> errors(static_cast<size_t>(tokens), 0.0);  // squared, of each token
  for (int64_t first = 0; first < tokens; first += kNormGroup) {
    for (int64_t c = 0; c < width; ++c) {
      double group[kNormGroup];
      for (int64_t i = 0; i < kNormGroup; ++i) {
        const double norm = norms[static_cast<size_t>(first + i)];
        group[i] = x[static_cast<size_t>((first + i) * width + c)];
        if (treatment.token_scale) group[i] = Ratio(group[i], norm);
      }
      const auto [low, high] = std::minmax_element(group, group + kNormGroup);
      const double offset = *low, scale = (*high - *low) / levels;
      for (int64_t i = 0; i < kNormGroup; ++i) {
        const double code = scale > 0 ? std::nearbyint((group[i] - offset) / scale) : 0;
        double error = group[i] - (offset + scale * code);
        if (treatment.token_scale) error *= norms[static_cast<size_t>(first + i)];
        errors[static_cast<size_t>(first + i)] += error * error;
      }
    }
  }
  double sum = 0;
  for (int64_t t = 0; t < tokens; ++t) {
    const double norm = norms[static_cast<size_t>(t)];
    sum += Ratio(errors[static_cast<size_t>(t)], norm * norm) / static_cast<double>(tokens);
  }
  return sum;
}

}  // namespace kvrazor::eval
