// Attention over packed pages and 16-bit rows. One call serves decoding (1..n new tokens) and a prefill chunk.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kvrazor/executor.h"
#include "src/ops/page_set.h"

namespace kvrazor {

/// Rows of f32 values, [tokens][heads][head_dim] with strides in floats; the channels of a head are contiguous.
struct QueryRows {
  const float* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};
struct OutputRows {
  float* data = nullptr;
  int64_t token_stride = 0;
  int64_t head_stride = 0;
};

struct AttendArgs {
  const LayerFormat* format = nullptr;
  std::span<const AttendPage> pages;  ///< disjoint keys, any order; may be empty (output 0, lse -inf)
  int num_qo_heads = 0;               ///< multiple of num_kv_heads; query head h reads kv head h / gqa_ratio
  int qo_len = 0;                     ///< new tokens
  float softmax_scale = 0;            ///< on q.k, before mask and softcap
  float logit_softcap = 0;            ///< 0: none, else logit = softcap * tanh(logit / softcap)
  QueryRows q;                        ///< after RoPE, not rotated
  OutputRows out;                     ///< [qo_len][num_qo_heads][head_dim of v], not rotated

  /// f16 added to the logits, [qo_len][mask_stride], column = key index; -inf hides a key. nullptr: causal, key j is seen
  /// by new token i if j <= causal_base + i. One mask for all heads.
  const f16_bits* mask = nullptr;
  int64_t mask_stride = 0;
  int64_t causal_base = 0;

  const float* alibi_slopes = nullptr;  ///< [num_qo_heads] factor on the mask value, or nullptr (1)
  const float* sink_logits = nullptr;   ///< [num_qo_heads] an extra logit that adds to the denominator only, or nullptr
  float* lse = nullptr;                 ///< [qo_len][num_qo_heads] natural log of the softmax denominator, or nullptr
};

/// Throws Error if a shape is impossible. Called by Backend::Attend in every build.
void CheckAttendArgs(const AttendArgs& args);

/// Joins two attentions over disjoint keys of one query: out_a and lse_a become those over the union.
///   out_a, out_b  [head_dim];  lse  natural log, -inf where no key was seen
void MergePartials(float* out_a, float& lse_a, const float* out_b, float lse_b, int head_dim);

}  // namespace kvrazor
