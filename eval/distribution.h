// Comparing next-token distributions: perplexity, KL divergence, agreement of the most likely token.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace kvrazor::eval {

/// Natural log of sum exp(x), without overflow; -infinity for an empty span or when every x is -infinity.
double LogSumExp(std::span<const float> x);

/// log_probs[i] = logits[i] - LogSumExp(logits). The spans have equal length and may be the same memory.
void LogSoftmax(std::span<const float> logits, std::span<float> log_probs);

/// KL(p || q) = sum p_i (log p_i - log q_i) in nats, from log-probabilities of equal length. Terms with p_i = 0 add nothing;
/// infinite if q_i = 0 where p_i > 0. Rounding may give a tiny negative number when p and q are equal: it is returned as 0.
double KlDivergence(std::span<const float> log_p, std::span<const float> log_q);

/// Index of the largest value, the first one of equals; 0 for an empty span.
int64_t ArgMax(std::span<const float> x);

/// Value below which a share q in [0, 1] of the values lies, linear between neighbours (type 7 of Hyndman and Fan 1996).
/// Throws Error if there are none.
double Quantile(std::vector<double> values, double q);

/// Two caches compared at one position.
struct PositionAgreement {
  int64_t position = 0;   ///< of the last token read; what comes after it is predicted
  double nll = 0;         ///< negative log-likelihood of the text's own next token, nats
  double kld = 0;         ///< nats, from the reference to the cache compared
  bool same_top1 = true;  ///< both have the same most likely token
};

/// next: the token that follows in the text. Both spans cover the vocabulary; an empty reference leaves kld and same_top1 as
/// they are. Throws Error if the spans differ in length or the token lies outside of them.
PositionAgreement ComparePosition(int64_t position, std::span<const float> reference_log_probs,
                                  std::span<const float> log_probs, int64_t next);

/// What comparing two caches at many positions comes to.
struct Agreement {
  int64_t positions = 0;
  double ppl = 0;     ///< exp of the mean negative log-likelihood of the text's own next token
  double nll_se = 0;  ///< standard error of that mean, positions taken as independent: about the relative error of ppl
  double kld_mean = 0;  ///< nats, from the reference to the cache compared
  double kld_se = 0;    ///< standard error of kld_mean, positions taken as independent
  double kld_median = 0;
  double kld_p99 = 0;
  double kld_p999 = 0;
  double kld_max = 0;
  int64_t worst_index = 0;  ///< which of the positions has kld_max
  double same_top1 = 0;     ///< share of positions, in [0, 1], where both have the same most likely token
};
/// Throws Error if there is no position.
Agreement Summarize(std::span<const PositionAgreement> positions);

}  // namespace kvrazor::eval
