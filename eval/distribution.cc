#include "eval/distribution.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "kvrazor/error.h"

namespace kvrazor::eval {

double LogSumExp(std::span<const float> x) {
  constexpr float kNone = -std::numeric_limits<float>::infinity();
  float largest = kNone;
  for (const float v : x) largest = std::max(largest, v);
  if (largest == kNone) return kNone;
  double sum = 0;
  for (const float v : x) sum += std::exp(v - largest);
  return double{largest} + std::log(sum);
}

void LogSoftmax(std::span<const float> logits, std::span<float> log_probs) {
  const double lse = LogSumExp(logits);
  for (size_t i = 0; i < logits.size(); ++i) log_probs[i] = static_cast<float>(logits[i] - lse);
}

double KlDivergence(std::span<const float> log_p, std::span<const float> log_q) {
  double sum = 0;
  for (size_t i = 0; i < log_p.size(); ++i) {
    const float p = std::exp(log_p[i]);
    if (p > 0) sum += double{p} * (double{log_p[i]} - double{log_q[i]});
  }
  return std::max(sum, 0.0);
}

int64_t ArgMax(std::span<const float> x) { return x.empty() ? 0 : std::max_element(x.begin(), x.end()) - x.begin(); }

double Quantile(std::vector<double> values, double q) {
  if (values.empty()) throw Error("Quantile: no values; at least one is needed.");
  std::sort(values.begin(), values.end());
  const double at = std::clamp(q, 0.0, 1.0) * static_cast<double>(values.size() - 1);
  const size_t below = static_cast<size_t>(at);
  const size_t above = std::min(below + 1, values.size() - 1);
  const double share = at - static_cast<double>(below);
  if (share == 0) return values[below];  // keeps infinity from becoming infinity * 0
  return values[below] + share * (values[above] - values[below]);
}

PositionAgreement ComparePosition(int64_t position, std::span<const float> reference_log_probs,
                                  std::span<const float> log_probs, int64_t next) {
  const bool has_reference = !reference_log_probs.empty();
  if ((has_reference && reference_log_probs.size() != log_probs.size()) || next < 0 || next >= std::ssize(log_probs))
    throw Error(
        "ComparePosition: the distributions cover different vocabularies, or the next token lies outside of them.");
  PositionAgreement result{.position = position, .nll = -double{log_probs[static_cast<size_t>(next)]}};
  if (has_reference) {
    result.kld = KlDivergence(reference_log_probs, log_probs);
    result.same_top1 = ArgMax(reference_log_probs) == ArgMax(log_probs);
  }
  return result;
}

Agreement Summarize(std::span<const PositionAgreement> positions) {
  if (positions.empty()) throw Error("Summarize: no position was compared; at least one is needed.");
  Agreement result;
  result.positions = std::ssize(positions);
  const double count = static_cast<double>(result.positions);
  std::vector<double> klds;
  double nll_mean = 0;
  int64_t same_top1 = 0;
  for (const PositionAgreement& p : positions) {
    klds.push_back(p.kld);
    nll_mean += p.nll / count;
    result.kld_mean += p.kld / count;
    same_top1 += p.same_top1;
  }
  result.same_top1 = static_cast<double>(same_top1) / count;
  double nll_squares = 0, kld_squares = 0;
  for (const PositionAgreement& p : positions) {
    nll_squares += (p.nll - nll_mean) * (p.nll - nll_mean);
    kld_squares += (p.kld - result.kld_mean) * (p.kld - result.kld_mean);
  }
  if (positions.size() > 1) {
    result.nll_se = std::sqrt(nll_squares / (count - 1) / count);
    result.kld_se = std::sqrt(kld_squares / (count - 1) / count);
  }
  result.ppl = std::exp(nll_mean);
  result.worst_index = std::max_element(klds.begin(), klds.end()) - klds.begin();
  result.kld_max = klds[static_cast<size_t>(result.worst_index)];
  result.kld_median = Quantile(klds, 0.5);
  result.kld_p99 = Quantile(klds, 0.99);
  result.kld_p999 = Quantile(klds, 0.999);
  return result;
}

}  // namespace kvrazor::eval
