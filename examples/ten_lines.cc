// A packed KV cache: one sequence, one new token, one layer.
#include <cstdio>
#include <vector>

#include "kvrazor/cache.h"

int main() {
  kvrazor::Cache cache({.num_layers = 1,
                        .shape = {.num_kv_heads = 2, .head_dim = 64},
                        .recipe = kvrazor::ParseRecipe("razor-2"),
                        .max_tokens = 8192});
  const kvrazor::SequenceId seq = cache.Open();
  std::vector<float> k(2 * 64, 0.5f), v(2 * 64, 0.25f), q(6 * 64, 1.0f), out(6 * 64);  // 6 query heads share 2 kv heads

  for (int token = 0; token < 1000; ++token) {
    if (cache.Begin(seq, 1) != kvrazor::Status::kOk) return 1;  // out of pages: nothing has changed
    cache.Append(0, seq, {k.data(), kvrazor::Dtype::kF32, 1, 2, 64}, {v.data(), kvrazor::Dtype::kF32, 1, 2, 64});
    cache.Attend(0, seq, {q.data(), kvrazor::Dtype::kF32, 1, 6, 64}, {out.data(), kvrazor::Dtype::kF32, 1, 6, 64});
    cache.Commit(seq);  // seals the pages that have a full page behind them
  }
  const kvrazor::CacheStats stats = cache.Stats();
  std::printf("%lld tokens, %lld sealed at %.2f bits per value, %lld bytes in use\n",
              static_cast<long long>(cache.kv_len(seq)), static_cast<long long>(cache.sealed_len(seq)),
              stats.bits_per_value, static_cast<long long>(stats.total_bytes));
  return out[0] > 0.24f && out[0] < 0.26f ? 0 : 1;  // every value is 0.25, and so is their mean
}
