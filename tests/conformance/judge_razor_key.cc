#include <algorithm>
#include <cmath>
#include <limits>
#include <string>

#include "reference/half.h"
#include "reference/seal_razor_key.h"
#include "tests/conformance/cases.h"
#include "tests/conformance/judge.h"

namespace kvrazor::conformance {
namespace {

using reference::Feedback;

/// One token of one head, as stored, and what its channels' sums are in float64.
struct Token {
  std::string name;
  std::vector<double> r;       // against the stored mean
  std::vector<double> levels;  // of the stored codes
  double error = 0;            // of an r
  int bits = 2;

  double largest_level() const { return 0.5 * ((1 << bits) - 1); }
};

/// Sums over the channels before c, with bounds of their errors in f32.
struct ChannelSums {
  double image = 0;  // v = r_c + sum W_ic r_i
  double image_error = 0;
  double levels = 0;  // b = sum W_ic l_i, so x = v - s b
  double error = 0;   // of x
};

ChannelSums SumsOf(const Token& token, const Feedback& feedback, int c, double scale) {
  // The factor in f32: elimination of D pivots, each entry a sum of at most D products. Backward errors grow with the
  // condition of A, below 5 D + 1; what is met in practice, and allowed here, is a small multiple of the sum's own
  // bound.
  const double weight_error = Gamma(8.0 * feedback.weights.dim);
  ChannelSums sums;
  double weight = 0;
  double of_r = std::abs(token.r[c]);
  double of_e = 0;
  sums.image = token.r[c];
  for (int i = 0; i < c; ++i) {
    const double w = feedback.weights(i, c);
    sums.image += w * token.r[i];
    sums.levels += w * token.levels[i];
    weight += std::abs(w);
    of_r += std::abs(w * token.r[i]);
    of_e += std::abs(w) * (std::abs(token.r[i] - scale * token.levels[i]) +
                           Gamma(2) * (std::abs(token.r[i]) + scale * token.largest_level()));
  }
  sums.image_error = token.error * (1 + weight) + (Gamma(c + 4) + weight_error) * of_r;
  sums.error = token.error * (1 + weight) + (Gamma(c + 4) + weight_error) * of_e +
               Gamma(4) * std::abs(sums.image - scale * sums.levels) +
               weight * Gamma(2) * scale * token.largest_level();
  return sums;
}

/// The scales with which the feedback gives these codes: x / s + L/2 in [code - 1/2, code + 1/2] for every channel,
/// linear in 1/s.
Interval ScalesOf(const Token& token, const std::vector<ChannelSums>& sums, double scale) {
  Interval inverse = {0, std::numeric_limits<double>::infinity()};
  for (size_t c = 0; c < sums.size(); ++c) {
    const double slack = 0.5 + sums[c].error / scale + Gamma(4) * (2 * token.largest_level() + 1);
    const double most = token.largest_level();
    const double low = token.levels[c] == -most ? -std::numeric_limits<double>::infinity() : token.levels[c] - slack;
    const double high = token.levels[c] == most ? std::numeric_limits<double>::infinity() : token.levels[c] + slack;
    // low <= image / s - b <= high
    const double a = sums[c].image;
    if (a == 0) {
      if (low + sums[c].levels > 0 || high + sums[c].levels < 0) return {1, 0};
      continue;
    }
    double from = (low + sums[c].levels) / a;
    double to = (high + sums[c].levels) / a;
    if (a < 0) std::swap(from, to);
    inverse.low = std::max(inverse.low, from);
    inverse.high = std::min(inverse.high, to);
  }
  return {1 / inverse.high, inverse.low > 0 ? 1 / inverse.low : std::numeric_limits<double>::infinity()};
}

/// Squared error of r with its nearest levels of scale s.
double NearestError(const Token& token, double s) {
  double sum = 0;
  for (const double x : token.r) {
    const double level =
        std::clamp(reference::RoundHalfEven(x / s + token.largest_level()), 0.0, 2 * token.largest_level()) -
        token.largest_level();
    sum += (x - s * level) * (x - s * level);
  }
  return sum;
}

/// s' = g s for the scales of the interval: g s = num / den clamped to [0.7 s, 1.6 s].
Interval GainedScale(const Token& token, const Feedback& feedback, const std::vector<ChannelSums>& sums, Interval s) {
  double num = 0, num_error = 0, den = 0, den_error = 0;
  for (size_t c = 0; c < sums.size(); ++c) {
    const double d = feedback.pivots[c];
    const double v = sums[c].image;
    const double read = token.levels[c] + sums[c].levels;  // (v - x + s l) / s
    const double read_error =
        (sums[c].image_error + sums[c].error + Gamma(4) * (std::abs(v) + s.high * std::abs(read))) / s.low;
    num += d * v * v;
    num_error += d * (2 * std::abs(v) * sums[c].image_error + sums[c].image_error * sums[c].image_error);
    den += d * v * read;
    den_error += d * (std::abs(v) * read_error + sums[c].image_error * (std::abs(read) + read_error) +
                      Gamma(sums.size()) * std::abs(v * read));
  }
  num_error += Gamma(2.0 * sums.size()) * num;
  const double most =
      den - den_error > 0 ? (num + num_error) / (den - den_error) : std::numeric_limits<double>::infinity();
  const double least = den + den_error > 0 ? std::max(0.0, num - num_error) / (den + den_error) : 0;
  Interval gained = {std::clamp(least, 0.7 * s.low, 1.6 * s.low), std::clamp(most, 0.7 * s.high, 1.6 * s.high)};
  if (den - den_error <= 0) gained = {std::min(gained.low, s.low), std::max(gained.high, s.high)};  // a gain of 1
  return gained;
}

/// By how much f32 may misjudge the error of a scale.
double Slack(const Token& token) {
  double squares = 0;
  for (const double x : token.r) squares += x * x;
  const double n = static_cast<double>(token.r.size());
  return Gamma(3 * n) * squares + 2 * token.error * std::sqrt(n * squares);
}

/// The search with f32's ties decided one way, the other way, or as they fall: growing or shrinking all values but the
/// largest, which sets the starting scales, by a little decides them. Each way leads to candidates of its own, of which it
/// takes the best, or one whose error f32 cannot tell from the best's: errors are ranked by what a scale explains,
/// <r, l>^2 / <l, l>: two sums of D terms, at most sum r^2.
std::vector<reference::ScaleCandidate> Candidates(const Token& token, double largest) {
  std::vector<reference::ScaleCandidate> all;
  const double nudge = 1e-6 + 2 * token.error / largest;
  for (const double by : {0.0, nudge, -nudge}) {
    std::vector<double> moved = token.r;
    for (double& x : moved) {
      if (std::abs(x) != largest) x *= 1 + by;
    }
    const std::vector<reference::ScaleCandidate> found = reference::RazorScaleCandidates(moved, token.bits);
    double least = std::numeric_limits<double>::infinity();
    for (const reference::ScaleCandidate& c : found) least = std::min(least, c.error);
    for (const reference::ScaleCandidate& c : found) {
      if (c.error <= least + Slack(token)) all.push_back(c);
    }
  }
  return all;
}

/// Judges the codes; returns the interval in which s' must lie.
Interval JudgeToken(const Token& token, const Feedback& feedback, Verdict& verdict) {
  const Interval anything = {0, std::numeric_limits<double>::infinity()};
  double largest = 0;
  for (const double x : token.r) largest = std::max(largest, std::abs(x));
  if (largest <= 16 * token.error) return {0, 4 * largest + 64 * token.error};  // noise of the mean
  const std::vector<reference::ScaleCandidate> candidates = Candidates(token, largest);
  const auto best = std::min_element(candidates.begin(), candidates.end(),
                                     [](const auto& a, const auto& b) { return a.error < b.error; });

  std::vector<ChannelSums> sums;
  for (int c = 0; c < feedback.weights.dim; ++c) sums.push_back(SumsOf(token, feedback, c, best->scale));
  Interval scales = ScalesOf(token, sums, best->scale);
  if (scales.low > scales.high) {
    verdict.Fault(token.name + ": no scale gives these codes");
    return anything;
  }
  const double tie = best->error + Slack(token);
  const double s = std::clamp(best->scale, scales.low, scales.high);
  // Among candidates that f32 may rank differently any may have been taken; else the best itself, up to its error.
  const double around = 1e-5 * best->scale + 4 * token.error;
  bool is_best = NearestError(token, s) <= tie;
  for (const reference::ScaleCandidate& c : candidates) {
    is_best = is_best || (scales.low - around <= c.scale && c.scale <= scales.high + around);
  }
  if (!is_best) verdict.Fault(token.name + ": scale is not the best");
  // s itself is not stored. It is one of the candidates, or near the best: narrow the interval to what was found to
  // fit.
  Interval s_range = {std::max(scales.low, s - around), std::min(scales.high, s + around)};
  for (const reference::ScaleCandidate& c : candidates) {
    if (!scales.Contains(c.scale)) continue;
    s_range = {std::min(s_range.low, c.scale), std::max(s_range.high, c.scale)};
  }
  return GainedScale(token, feedback, sums, s_range);
}

std::vector<double> JudgeMean(const Trial& trial, int h, double row_error, Verdict& verdict) {
  const PageLayout& layout = trial.layout;
  const std::string name = "head " + std::to_string(h);
  std::vector<double> mean = reference::PageMean(layout, trial.rows, trial.exact, h);
  double largest = 0, magnitude = 0;
  for (int c = 0; c < layout.shape.head_dim; ++c) {
    largest = std::max(largest, std::abs(mean[c]));
    double sum = 0;
    for (int t = 0; t < kPageTokens; ++t) sum += trial.exact.Test(t) ? 0.0 : std::abs(trial.rows(t, h, c));
    magnitude = std::max(magnitude, sum / std::max(1, kPageTokens - trial.exact.Count()));
  }
  const double error = row_error + Gamma(kPageTokens + 2) * magnitude;
  const double scale = reference::GetHeadScalar(layout, trial.page, h, 0);
  if (std::abs(scale - largest / 32767) > error / 32767 + Gamma(2) * scale) verdict.Fault(name + ": mean_scale");
  for (int c = 0; c < layout.shape.head_dim; ++c) {
    const int stored = static_cast<int16_t>(reference::GetU16(layout, trial.page, h, layout.mean_at, c));
    const double steps = scale > 0 ? mean[c] / scale : 0;
    const double steps_error = scale > 0 ? error / scale + Gamma(2) * std::abs(steps) : 0;
    if (std::abs(stored - steps) > 0.5 + steps_error) verdict.Fault(name + " channel " + std::to_string(c) + ": mean");
    mean[c] = stored * scale;
  }
  return mean;
}

/// The stored factor of the mean: the rounding of <y, m> / <m, m>, two sums of D products, y within its error.
double JudgeMeanFactor(const Trial& trial, int h, int t, const std::vector<double>& mean, const std::string& name,
                       Verdict& verdict) {
  const PageLayout& layout = trial.layout;
  if (!layout.recipe.rank_one_mean) return 1;
  const uint16_t stored = reference::GetU16(layout, trial.page, h, layout.mean_factor_at, t);
  if (trial.exact.Test(t)) {
    if (stored != 0) verdict.Fault(name + ": mean factor of an exact token");
    return 0;
  }
  const std::vector<double> y = trial.rows.Row(t, h);
  const double factor = reference::MeanFactor(y, mean);
  double square = 0, magnitude = 0, sum = 0;
  for (size_t c = 0; c < y.size(); ++c) {
    square += mean[c] * mean[c];
    magnitude += std::abs(y[c] * mean[c]);
    sum += std::abs(mean[c]);
  }
  const double dim = static_cast<double>(y.size());
  const double error = square > 0 ? (Gamma(dim + 2) * magnitude + RowError(trial, t, h) * sum) / square +
                                        Gamma(dim + 4) * std::abs(factor)
                                  : 0.0;
  const double low = reference::DecodeF16(reference::EncodeFiniteF16(factor - error));
  const double high = reference::DecodeF16(reference::EncodeFiniteF16(factor + error));
  const double got = reference::DecodeF16(stored);
  if (got < low || got > high) verdict.Fault(name + ": mean factor");
  return got;
}

void JudgeHead(const Trial& trial, int h, Verdict& verdict) {
  const PageLayout& layout = trial.layout;
  const int dim = layout.shape.head_dim;
  const std::string head_name = "head " + std::to_string(h);
  double row_error = 0;
  for (int t = 0; t < kPageTokens; ++t) {
    if (!trial.exact.Test(t)) row_error = std::max(row_error, RowError(trial, t, h));
  }
  const std::vector<double> mean = JudgeMean(trial, h, row_error, verdict);
  const Feedback feedback = reference::FactorMetric(reference::SealMetric(trial.moment, h, dim));
  std::vector<Interval> scales(kPageTokens);
  Interval top;
  for (int t = 0; t < kPageTokens; ++t) {
    Token token;
    token.name = head_name + " token " + std::to_string(t);
    token.bits = layout.recipe.bits;
    token.error = RowError(trial, t, h);
    const double factor = JudgeMeanFactor(trial, h, t, mean, token.name, verdict);
    for (int c = 0; c < dim; ++c) {
      const int code = reference::GetCode(layout, trial.page, h, t, c);
      if (trial.exact.Test(t) && code != 0) verdict.Fault(token.name + ": code of an exact token");
      token.levels.push_back(code - token.largest_level());
      token.r.push_back(trial.rows(t, h, c) - factor * mean[c]);
      token.error =
          std::max(token.error, RowError(trial, t, h) + Gamma(3) * (std::abs(factor * mean[c]) + std::abs(token.r[c])));
    }
    if (trial.exact.Test(t)) continue;
    scales[t] = JudgeToken(token, feedback, verdict);
    top = {std::max(top.low, scales[t].low), std::max(top.high, scales[t].high)};
  }
  const double base = reference::GetHeadScalar(layout, trial.page, h, 1);
  if (base != reference::ScaleBase(base) || base < reference::ScaleBase(top.low) ||
      base > reference::ScaleBase(top.high)) {
    verdict.Fault(head_name + ": base " + std::to_string(base));
  }
  for (int t = 0; t < kPageTokens; ++t) {
    const uint8_t stored = reference::GetU8(layout, trial.page, h, layout.scale_at, t);
    if (reference::EncodeE3M5(scales[t].low, base) <= stored && stored <= reference::EncodeE3M5(scales[t].high, base))
      continue;
    verdict.Fault(head_name + " token " + std::to_string(t) + ": token scale");
  }
}

}  // namespace

void JudgeRazorKey(const Trial& trial, Verdict& verdict) {
  for (int h = 0; h < trial.layout.shape.num_kv_heads; ++h) JudgeHead(trial, h, verdict);
}

}  // namespace kvrazor::conformance
