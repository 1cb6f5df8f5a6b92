// Attention in float64: every key is read back, every logit is formed, one softmax.
#pragma once

#include <cstdint>
#include <vector>

#include "reference/dequantize.h"
#include "src/ops/attend.h"

namespace kvrazor::reference {

/// All keys and values of one kv head, read back, in the order of the pages.
struct HeadTokens {
  std::vector<int64_t> index;            // of each key: mask column, causal position
  std::vector<std::vector<Sum>> keys;    // [tokens][head_dim of k]
  std::vector<std::vector<Sum>> values;  // [tokens][head_dim of v]
};
HeadTokens ReadTokens(const AttendArgs& args, int kv_head);

/// One query row against all keys it sees. Besides the result, what bounds of rounding errors need.
struct Attention {
  std::vector<double> out;      ///< [head_dim of v], not rotated
  double lse = 0;               ///< natural log of the softmax denominator, sink logit included; -inf: nothing seen
  std::vector<double> weights;  ///< [tokens] softmax, 0 for hidden keys
  std::vector<double> logits;   ///< [tokens] -inf for hidden keys
  std::vector<double> logit_magnitude;  ///< [tokens] |scale| sum_c |q_c| |k_c| + |mask|, |k_c| by magnitude
  std::vector<double> magnitude;  ///< [head_dim of v] sum_t weight_t * (magnitude of the value, see DequantizeHead)
};

Attention AttendRow(const AttendArgs& args, const HeadTokens& tokens, int token, int qo_head);
Attention AttendRow(const AttendArgs& args, int token, int qo_head);

}  // namespace kvrazor::reference
