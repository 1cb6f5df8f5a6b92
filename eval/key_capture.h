// The keys and values that a model stores, seen on their way into llama.cpp's cache.
#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "ggml-backend.h"

namespace kvrazor::eval {

/// Rows of one side of one layer as the model wrote them (keys after RoPE): [tokens][heads][head_dim] f32.
struct StoredRows {
  int64_t num_heads = 0;
  int64_t head_dim = 0;
  std::vector<float> values;
  int64_t num_tokens() const { return num_heads * head_dim == 0 ? 0 : std::ssize(values) / (num_heads * head_dim); }
};

/// Give OnNode and the object to MakeContext (f16 cache, flash attention); tokens are collected in the order they are computed.
class KeyCapture {
 public:
  static bool OnNode(ggml_tensor* node, bool ask, void* capture);
  const std::map<int, StoredRows>& keys() const { return keys_; }      ///< by layer
  const std::map<int, StoredRows>& values() const { return values_; }  ///< by layer

 private:
  void Collect(const ggml_tensor* rows, StoredRows& stored);

  std::map<int, StoredRows> keys_, values_;
};

}  // namespace kvrazor::eval
