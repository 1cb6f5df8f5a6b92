// A SET_ROWS node on a packed cache: new keys or values go to their slots as 16-bit rows.
#pragma once

#include <cstdint>
#include <vector>

#include "ggml.h"
#include "integrations/ggml/kv_cache.h"
#include "kvrazor/executor.h"

namespace kvrazor::ggml {

/// True if the node writes whole rows (not the single values of a transposed cache).
bool StoresRows(const ggml_tensor* node, const CacheSide& side);

/// The tensor of token positions that the keys were rotated with: i32, its first values are one a row; nullptr if there
/// is none.
const ggml_tensor* PositionsOf(const ggml_tensor* node);

/// Slots that the node writes to, in the order of its rows.
void ReadSlots(const ggml_tensor* node, std::vector<int64_t>& slots);

/// positions: one a row, or empty (then the slot's index in its stream counts). Values follow what their keys were.
void StoreRows(const ggml_tensor* node, CacheLayer& layer, Side side, const std::vector<int64_t>& slots,
               const std::vector<int32_t>& positions, Executor& executor);

}  // namespace kvrazor::ggml
