// What a model's KV cache and memory depend on, from the GGUF header alone.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/gguf_header.h"

namespace kvrazor::eval {

/// How a layer remembers the past.
enum class LayerKind {
  kFull,       ///< keys and values of every token
  kWindow,     ///< keys and values of the newest `window` tokens
  kLatent,     ///< one compressed row a token (MLA)
  kRecurrent,  ///< a state of fixed size, no KV cache
};

struct LayerShape {
  LayerKind kind = LayerKind::kFull;
  int num_kv_heads = 0;
  int k_head_dim = 0;
  int v_head_dim = 0;  ///< 0 with kLatent
  int64_t window = 0;  ///< tokens; 0 unless kWindow
};

struct ModelShape {
  std::string architecture;
  std::string name;
  int64_t embedding_length = 0;
  int64_t vocabulary = 0;
  int64_t trained_context = 0;
  uint64_t weight_bytes = 0;  ///< of all parts
  std::vector<LayerShape> layers;
  std::vector<std::string> notes;  ///< what the header did not say and what was assumed instead

  /// Keys and values of one token in 16 bits, all layers that keep every token.
  int64_t f16_bytes_per_token() const;
};

/// Reads the header(s) of a model. Throws Error if it is damaged or lacks what is needed, naming the key.
ModelShape ReadModelShape(const std::string& path);
ModelShape ShapeOf(const GgufHeader& header);

}  // namespace kvrazor::eval
