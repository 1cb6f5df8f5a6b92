#include "reference/attend.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "reference/half.h"

namespace kvrazor::reference {
namespace {

constexpr double kHidden = -std::numeric_limits<double>::infinity();

/// What is added to the logit of key `key`; kHidden: the key is not seen.
double Mask(const AttendArgs& args, int token, int qo_head, int64_t key) {
  if (!args.mask) return key <= args.causal_base + token ? 0.0 : kHidden;
  const double mask = DecodeF16(args.mask[token * args.mask_stride + key]);
  if (mask == kHidden) return kHidden;
  return args.alibi_slopes ? mask * args.alibi_slopes[qo_head] : mask;
}

}  // namespace

HeadTokens ReadTokens(const AttendArgs& args, int kv_head) {
  HeadTokens tokens;
  for (const AttendPage& page : args.pages) {
    for (int t = 0; t < page.num_tokens; ++t) {
      tokens.index.push_back(page.first_key + t);
      tokens.keys.push_back(DequantizeHead(args.format->k, page.k, t, kv_head));
      tokens.values.push_back(DequantizeHead(args.format->v, page.v, t, kv_head));
    }
  }
  return tokens;
}

Attention AttendRow(const AttendArgs& args, const HeadTokens& tokens, int token, int qo_head) {
  const int k_dim = args.format->k.shape.head_dim;
  const int v_dim = args.format->v.shape.head_dim;
  const size_t num_tokens = tokens.index.size();
  const float* q = args.q.data + token * args.q.token_stride + qo_head * args.q.head_stride;

  Attention row;
  row.logits.assign(num_tokens, kHidden);
  row.logit_magnitude.assign(num_tokens, 0.0);
  row.weights.assign(num_tokens, 0.0);
  row.out.assign(static_cast<size_t>(v_dim), 0.0);
  row.magnitude.assign(static_cast<size_t>(v_dim), 0.0);
  for (size_t i = 0; i < num_tokens; ++i) {
    const double mask = Mask(args, token, qo_head, tokens.index[i]);
    if (mask == kHidden) continue;
    double dot = 0;
    double magnitude = 0;
    for (int c = 0; c < k_dim; ++c) {
      dot += double{q[c]} * tokens.keys[i][c].value;
      magnitude += std::abs(double{q[c]}) * tokens.keys[i][c].magnitude;
    }
    double logit = args.softmax_scale * dot;
    if (args.logit_softcap != 0) logit = args.logit_softcap * std::tanh(logit / args.logit_softcap);
    row.logits[i] = logit + mask;
    row.logit_magnitude[i] = std::abs(args.softmax_scale) * magnitude + std::abs(mask);
  }

  double top = args.sink_logits ? double{args.sink_logits[qo_head]} : kHidden;
  for (const double logit : row.logits) top = std::max(top, logit);
  row.lse = kHidden;
  if (top == kHidden) return row;
  double denominator = args.sink_logits ? std::exp(args.sink_logits[qo_head] - top) : 0.0;
  for (const double logit : row.logits) denominator += std::exp(logit - top);
  row.lse = top + std::log(denominator);
  for (size_t i = 0; i < num_tokens; ++i) {
    if (row.logits[i] == kHidden) continue;
    row.weights[i] = std::exp(row.logits[i] - top) / denominator;
    for (int c = 0; c < v_dim; ++c) {
      row.out[c] += row.weights[i] * tokens.values[i][c].value;
      row.magnitude[c] += row.weights[i] * tokens.values[i][c].magnitude;
    }
  }
  return row;
}

Attention AttendRow(const AttendArgs& args, int token, int qo_head) {
  const int gqa_ratio = args.num_qo_heads / args.format->k.shape.num_kv_heads;
  return AttendRow(args, ReadTokens(args, qo_head / gqa_ratio), token, qo_head);
}

}  // namespace kvrazor::reference
