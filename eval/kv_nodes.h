// The nodes of llama.cpp's graphs that write its KV cache and read keys from it, for evaluation callbacks.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "kvrazor/layout.h"

namespace kvrazor::eval {

/// A tensor of the cache: "cache_k_l12", "cache_v_l12"; `kind` is what stands before k or v in caches beside the main one.
struct CacheTensorName {
  Side side = Side::kKey;
  int layer = 0;
  std::string kind;
};

/// The cache tensor behind a view of it; nullopt if there is none.
std::optional<CacheTensorName> CacheBehind(const ggml_tensor* tensor);

/// The tensor that a view lies in, or itself.
ggml_tensor* RootOf(ggml_tensor* tensor);

/// The cache tensor that the node stores rows in (SET_ROWS).
std::optional<CacheTensorName> WrittenCache(const ggml_tensor* node);

/// The tensor of keys that an attention node multiplies queries with: of FLASH_ATTN_EXT or, without flash attention, MUL_MAT;
/// nullptr for any other node. Keys are its [head_dim, tokens, num_kv_heads], queries the node's src[0] or src[1].
ggml_tensor* KeysReadBy(const ggml_tensor* node);
const ggml_tensor* QueriesOf(const ggml_tensor* attention);

/// Slots that a SET_ROWS node stores its rows in, in order.
std::vector<int64_t> SlotsOf(const ggml_tensor* set_rows);

/// The RoPE that the rows of a SET_ROWS node come from directly, views apart; nullptr if there is none.
const ggml_tensor* RopeBehind(const ggml_tensor* set_rows);

/// Values of a tensor of 32-bit integers, wherever it lies.
std::vector<int32_t> ReadIntegers(const ggml_tensor* tensor);

}  // namespace kvrazor::eval
