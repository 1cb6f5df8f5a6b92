#include "reference/exact_tokens.h"

#include <algorithm>
#include <cmath>

#include "reference/half.h"

namespace kvrazor::reference {
namespace {

using Token = OutlierPools::Token;

bool Before(const Token& a, const Token& b) {
  return a.score < b.score || (a.score == b.score && a.position < b.position);
}

bool Contains(const std::vector<Token>& tokens, const Token& token) {
  return std::any_of(tokens.begin(), tokens.end(), [&](const Token& t) { return t.position == token.position; });
}

/// The n smallest of both.
std::vector<Token> Smallest(std::vector<Token> tokens, const std::vector<Token>& more, size_t n) {
  tokens.insert(tokens.end(), more.begin(), more.end());
  std::sort(tokens.begin(), tokens.end(), Before);
  if (tokens.size() > n) tokens.resize(n);
  return tokens;
}

/// One step of the paper; where its displaced tokens do not fit into the extra pool, with as many of the group's smallest
/// tokens as they do.
void Step(const ExactRule& rule, std::vector<Token> group, OutlierPools& pools) {
  std::sort(group.begin(), group.end(), Before);
  for (;;) {
    const std::vector<Token> next = Smallest(pools.pool, group, static_cast<size_t>(rule.pool));
    std::vector<Token> displaced;
    for (const Token& token : pools.pool) {
      if (!Contains(next, token)) displaced.push_back(token);
    }
    if (pools.extra.size() + displaced.size() <= static_cast<size_t>(rule.extra)) {
      pools.extra.insert(pools.extra.end(), displaced.begin(), displaced.end());
      pools.pool = next;
      return;
    }
    group.pop_back();
  }
}

}  // namespace

TokenMask TraceOutliers(const ExactRule& rule, const f16_bits* k_rows, int64_t row_values, const TokenMask& kept,
                        int64_t first_position, OutlierPools& pools) {
  TokenMask chosen;
  if (rule.pool == 0) return chosen;
  for (int first = 0; first < kPageTokens; first += rule.group_tokens) {
    std::vector<Token> group;
    for (int t = first; t < first + rule.group_tokens; ++t) {
      Token token{first_position + t, 0};
      for (int64_t c = 0; c < row_values; ++c) token.score += std::abs(DecodeF16(k_rows[t * row_values + c]));
      if (!kept.Test(t) && std::isfinite(token.score)) group.push_back(token);
    }
    Step(rule, group, pools);
    for (const std::vector<Token>& tokens : {pools.pool, pools.extra}) {
      for (const Token& token : tokens) {
        if (token.position >= first_position) chosen.Set(static_cast<int>(token.position - first_position));
      }
    }
  }
  return chosen;
}

}  // namespace kvrazor::reference
