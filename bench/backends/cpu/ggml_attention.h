// ggml's own attention (GGML_OP_FLASH_ATTN_EXT on its CPU backend): the named competitor of attend_bench.
#pragma once

#include <cstdint>
#include <memory>

namespace kvrazor::bench {

struct AttentionShape {
  int head_dim = 64;
  int num_kv_heads = 8;
  int gqa_ratio = 4;
  int qo_len = 1;
  int kv_len = 8192;
};

enum class GgmlCache { kF16, kQ8_0 };

/// One attention with its own cache, laid out as llama.cpp does: keys and values [kv_len][kv heads][head_dim], f16 mask.
class GgmlAttention {
 public:
  GgmlAttention(const AttentionShape& shape, GgmlCache cache, int num_threads);
  ~GgmlAttention();

  void Run();
  int64_t cache_bytes() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace kvrazor::bench
