// RoPE as a graph of llama.cpp does it to a layer's keys: there and back, with the node's own parameters, by ggml's own kernel.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <vector>

#include "ggml.h"

namespace kvrazor::eval {

class Rope {
 public:
  Rope() = default;  ///< none: keys stay as they are
  explicit Rope(const ggml_tensor* node);

  bool is_none() const { return head_dim_ == 0; }
  int64_t head_dim() const { return head_dim_; }
  /// Models that read images have several positions a token.
  int positions_per_token() const { return is_multi() ? 4 : 1; }

  /// In place.
  ///   rows       [num_tokens][num_heads][head_dim]
  ///   positions  [positions_per_token][num_tokens], as the node's
  void Apply(float* rows, int64_t num_tokens, int64_t num_heads, const std::vector<int32_t>& positions) const;
  void Undo(float* rows, int64_t num_tokens, int64_t num_heads, const std::vector<int32_t>& positions) const;

 private:
  bool is_multi() const;
  void Compute(ggml_op op, float* rows, int64_t num_tokens, int64_t num_heads,
               const std::vector<int32_t>& positions) const;

  int64_t head_dim_ = 0;
  std::array<int32_t, GGML_MAX_OP_PARAMS / sizeof(int32_t)> params_ = {};
  std::vector<float> factors_;  // of the frequencies; empty: none
  std::vector<float> gain_;     // [head_dim] what a channel pair is multiplied by beside its rotation (YaRN)
};

/// The RoPE behind the keys that a SET_ROWS node stores. Throws Error if keys are put together from parts after RoPE.
Rope RopeOfKeys(const ggml_tensor* set_rows);

}  // namespace kvrazor::eval
