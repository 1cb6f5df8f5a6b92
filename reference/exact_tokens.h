// Outlier Tokens Tracing from its definition: sets of tokens, in double.
#pragma once

#include <vector>

#include "src/core/half.h"
#include "src/ops/exact_tokens.h"

namespace kvrazor::reference {

/// The pool and the extra pool of a sequence as the paper has them: tokens, not only how many.
struct OutlierPools {
  struct Token {
    int64_t position = 0;
    double score = 0;  // sum of the magnitudes of its key
  };
  std::vector<Token> pool;
  std::vector<Token> extra;
};

/// Compresses one page of a sequence group by group: the tokens of the page that were ever in the pool.
///   k_rows          f16 [128][row_values]
///   kept            tokens that stay in 16 bits anyway and do not compete
///   first_position  of token 0 in its sequence
TokenMask TraceOutliers(const ExactRule& rule, const f16_bits* k_rows, int64_t row_values, const TokenMask& kept,
                        int64_t first_position, OutlierPools& pools);

}  // namespace kvrazor::reference
