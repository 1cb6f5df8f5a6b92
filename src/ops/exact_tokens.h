// Which tokens of a sealed page stay in 16 bits beside it: sinks, by their position, and those that a rule chooses when the
// page is sealed. Everything behind the choice (sealing without them, keeping and reading their rows) is the same for all.
//
// The rule there is: Outlier Tokens Tracing (OTT, arXiv:2505.10938). A few tokens whose keys are small stretch the range of
// every channel of their group. A pool holds the tokens of smallest key so far; group after group, in order, the tokens of
// the group compete with the pool's. Who enters stays in 16 bits for good, also when displaced from the pool later: its slot
// among the codes means nothing by then. So many may be displaced, then tracing stops.
//
//   state     scores of the pool's tokens, and how many were displaced; nothing about where they are
//   chain     state after a page = function of the state before it and of the page's keys. It changes only where a token is
//             chosen, so it is kept with the tokens of such pages, and going back to any page brings its state back.
#pragma once

#include <array>
#include <cstdint>

#include "kvrazor/recipe.h"
#include "src/core/half.h"
#include "src/ops/page_set.h"

namespace kvrazor {

/// What a layer keeps in 16 bits beside its sealed pages.
struct ExactRule {
  int sinks = 0;
  int pool = 0;                    // 0: no token is chosen
  int extra = 0;                   // tokens that may be displaced from the pool
  int group_tokens = kPageTokens;  // tokens that compete at a time

  bool chooses() const { return pool > 0; }
  bool any() const { return sinks > 0 || chooses(); }
  /// Tokens of a sequence of `tokens` that can be in 16 bits at most, read in order from its start.
  int64_t MostTokens(int64_t tokens) const;
};

/// Of a recipe of one layer (Recipe::ForLayer).
ExactRule MakeExactRule(const Recipe& recipe);

/// State of the rule after some page; all zeros at the start of a sequence.
struct ExactTrace {
  std::array<uint64_t, kMaxExactTokens> scores{};  // L1Norm of the pool, ascending
  int32_t pool_size = 0;
  int32_t num_displaced = 0;

  bool operator==(const ExactTrace&) const = default;
};

/// Tokens of page 0 that are sinks.
TokenMask SinkTokens(const ExactRule& rule);

/// The tokens of a page that the rule chooses besides `kept`, which stay in 16 bits anyway and do not compete. Scores are
/// exact, so every machine chooses the same.
///   k_rows  f16 [128][row_values], as the model wrote them
///   trace   state before the page; becomes that after it
TokenMask ChooseExact(const ExactRule& rule, const f16_bits* k_rows, int64_t row_values, const TokenMask& kept,
                      ExactTrace& trace);

/// Sum of the magnitudes of a row, in units of f16's smallest step (2^-24): exact. The largest number if a value is not finite.
uint64_t L1Norm(const f16_bits* row, int64_t row_values);

/// Rows of the tokens in `tokens`, one after another.
///   rows  f16 [128][row_values];  out  f16 [tokens.Count()][row_values]
void GatherRows(const f16_bits* rows, int64_t row_values, const TokenMask& tokens, f16_bits* out);

}  // namespace kvrazor
