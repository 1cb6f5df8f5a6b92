// How much memory a model takes with a KV cache, from numbers in its header; the same sums as the plug-in's own statistics.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "eval/cache_choice.h"
#include "eval/model_shape.h"

namespace kvrazor::apps {

/// Tokens that llama.cpp computes at once by default, and that a prompt is read in.
inline constexpr int64_t kDefaultBatch = 512;

/// Bytes, as double: exact up to 2^53, and without overflow for absurd contexts.
/// KV cache of one sequence on its way to `context` tokens: the most it ever takes, windows, batches in flight and tables
/// included.
double KvBytes(const eval::ModelShape& shape, const eval::CacheChoice& cache, int64_t context);
/// Layers of the model that the recipe would leave in 16 bits although they have a KV cache, and why (empty: none).
std::string UnpackedLayers(const eval::ModelShape& shape, const eval::CacheChoice& cache);
/// Estimate of the buffers for one batch: its logits and activations. The same for every cache.
double WorkspaceBytes(const eval::ModelShape& shape);

/// Longest context, a multiple of 256 (llama.cpp pads to it) up to `most`, with which `users` caches fit into `bytes`; 0: none.
int64_t LongestContext(const eval::ModelShape& shape, const eval::CacheChoice& cache, int64_t users, double bytes,
                       int64_t most);
/// Most caches of `context` tokens that fit into `bytes`.
int64_t MostUsers(const eval::ModelShape& shape, const eval::CacheChoice& cache, int64_t context, double bytes);

/// "24G", "512M", "1.5GiB", "800k", "123456": bytes, units of 1024. Throws UsageError.
double ParseBytes(std::string_view text);

}  // namespace kvrazor::apps
