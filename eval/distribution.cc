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

void AgreementMeter::Add(std::span<const float> reference_log_probs, std::span<const float> log_probs, int64_t next) {
  if (reference_log_probs.size() != log_probs.size() || next < 0 || next >= std::ssize(log_probs))
    throw Error(
        "AgreementMeter: the distributions cover different vocabularies, or the next token lies outside of them.");
  klds_.push_back(KlDivergence(reference_log_probs, log_probs));
  nll_sum_ -= log_probs[static_cast<size_t>(next)];
  same_top1_ += ArgMax(reference_log_probs) == ArgMax(log_probs);
}

Agreement AgreementMeter::Result() const {
  if (klds_.empty()) throw Error("AgreementMeter: no position was compared; at least one is needed.");
  Agreement result;
  result.positions = std::ssize(klds_);
  const double count = static_cast<double>(result.positions);
  result.ppl = std::exp(nll_sum_ / count);
  for (const double kld : klds_) result.kld_mean += kld / count;
  result.kld_median = Quantile(klds_, 0.5);
  result.kld_p99 = Quantile(klds_, 0.99);
  result.same_top1 = static_cast<double>(same_top1_) / count;
  return result;
}

}  // namespace kvrazor::eval
