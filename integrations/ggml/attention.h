// A flash attention node on a packed cache.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "integrations/ggml/kv_cache.h"
#include "kvrazor/executor.h"

namespace kvrazor::ggml {

/// Why an attention node cannot be computed on packed pages whatever its layer's recipe; nullptr if it can.
const char* AttentionProblem(const ggml_tensor* node);

/// Computes the node and adds its queries to the layer's second moment. `layer` is packed and ready. Throws Error.
void RunAttention(const ggml_tensor* node, CacheLayer& layer, Executor& executor);

/// Sequences that the new tokens of a stream belong to: tokens whose row of the mask hides all earlier new tokens start
/// one.
///   slots  of the new tokens, in the order of the mask's rows
int CountSequences(const ggml_tensor* mask, const std::vector<int64_t>& slots, int64_t slots_per_stream);

/// Of these pages, how many no new token sees. Pages behind the mask's last key do not count.
///   pages  indices in their stream
int CountHiddenPages(const ggml_tensor* mask, const std::vector<int64_t>& pages);

}  // namespace kvrazor::ggml
