// Any node that uses a packed tensor in another way than storing rows or attention: it gets a 16-bit copy at the
// tensor's own addresses, runs on the inner backend, and the rows that it changed are written back. Correct, slow,
// counted (context shift; tools that look at the cache).
#pragma once

#include <functional>
#include <vector>

#include "ggml.h"
#include "integrations/ggml/kv_cache.h"
#include "kvrazor/executor.h"

namespace kvrazor::ggml {

/// used: packed tensors among the node's sources and (written) its result; run computes the node.
/// Transient memory: 16 bits a value of each tensor, twice for the written one.
ggml_status RunOnRows(const ggml_tensor* node, const std::vector<CacheTensor*>& used, CacheTensor* written,
                      Executor& executor, const std::function<ggml_status()>& run);

/// Seals what became due in a layer, on both sides.
void SealDuePages(CacheLayer& layer, Executor& executor);
/// The same for several layers at once, so that all threads have work.
void SealDuePages(const std::vector<CacheLayer*>& layers, Executor& executor);

}  // namespace kvrazor::ggml
