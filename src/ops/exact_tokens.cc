#include "src/ops/exact_tokens.h"

#include <algorithm>
#include <limits>

namespace kvrazor {
namespace {

constexpr uint64_t kNotFinite = std::numeric_limits<uint64_t>::max();

/// One competition: tokens [first, first + count) of a page, smallest score first, the older one of equals. A token enters
/// while the pool has room, or by displacing the pool's largest if its own score is smaller.
void Compete(const ExactRule& rule, const uint64_t* scores, int first, int count, const TokenMask& kept,
             ExactTrace& trace, TokenMask& chosen) {
  std::array<int, kPageTokens> order;
  int num_candidates = 0;
  for (int t = first; t < first + count; ++t) {
    if (!kept.Test(t)) order[static_cast<size_t>(num_candidates++)] = t;
  }
  const int most = std::min(num_candidates, rule.pool);
  std::partial_sort(order.begin(), order.begin() + most, order.begin() + num_candidates,
                    [&](int a, int b) { return scores[a] < scores[b] || (scores[a] == scores[b] && a < b); });
  const auto pool = trace.scores.begin();
  for (int i = 0; i < most; ++i) {
    const int t = order[static_cast<size_t>(i)];
    const uint64_t score = scores[t];
    if (score == kNotFinite) return;
    if (trace.pool_size < rule.pool) {
      ++trace.pool_size;
    } else {
      if (trace.num_displaced == rule.extra || score >= pool[trace.pool_size - 1]) return;
      ++trace.num_displaced;
    }
    // Into its place; the last one makes room, or was free.
    const auto end = pool + trace.pool_size - 1;
    const auto at = std::upper_bound(pool, end, score);
    std::copy_backward(at, end, end + 1);
    *at = score;
    chosen.Set(t);
  }
}

}  // namespace

int64_t ExactRule::MostTokens(int64_t tokens) const {
  return std::min<int64_t>(tokens, int64_t{sinks} + (chooses() ? pool + extra : 0));
}

ExactRule MakeExactRule(const Recipe& recipe) {
  const SideRecipe& k = recipe.k;
  ExactRule rule{recipe.sink_tokens, recipe.exact_tokens, recipe.exact_extra_tokens, kPageTokens};
  if (k.codec == Codec::kAffine && k.axis == Axis::kPerChannel) rule.group_tokens = k.group_size;
  return rule;
}

TokenMask SinkTokens(const ExactRule& rule) {
  TokenMask sinks;
  for (int t = 0; t < rule.sinks; ++t) sinks.Set(t);
  return sinks;
}

TokenMask ChooseExact(const ExactRule& rule, const f16_bits* k_rows, int64_t row_values, const TokenMask& kept,
                      ExactTrace& trace) {
  TokenMask chosen;
  if (!rule.chooses() || (trace.pool_size == rule.pool && trace.num_displaced == rule.extra)) return chosen;
  std::array<uint64_t, kPageTokens> scores;
  for (int t = 0; t < kPageTokens; ++t) scores[static_cast<size_t>(t)] = L1Norm(k_rows + t * row_values, row_values);
  for (int first = 0; first < kPageTokens; first += rule.group_tokens)
    Compete(rule, scores.data(), first, rule.group_tokens, kept, trace, chosen);
  return chosen;
}

uint64_t L1Norm(const f16_bits* row, int64_t row_values) {
  constexpr uint32_t kExponentMask = 0x1f;
  uint64_t sum = 0;  // a value is below 2^41
  bool finite = true;
  for (int64_t i = 0; i < row_values; ++i) {
    const uint32_t exponent = (row[i] >> 10) & kExponentMask;
    const uint64_t mantissa = row[i] & 0x3ffu;
    finite &= exponent != kExponentMask;
    sum += exponent == 0 ? mantissa : (mantissa | 0x400u) << (exponent - 1);
  }
  return finite ? sum : kNotFinite;
}

void GatherRows(const f16_bits* rows, int64_t row_values, const TokenMask& tokens, f16_bits* out) {
  for (int t = 0; t < kPageTokens; ++t) {
    if (tokens.Test(t)) out = std::copy_n(rows + t * row_values, row_values, out);
  }
}

}  // namespace kvrazor
