#include "integrations/ggml/store_rows.h"

#include <algorithm>
#include <cstring>

#include "integrations/ggml/convert.h"
#include "integrations/ggml/counters.h"

namespace kvrazor::ggml {
namespace {

/// Rows that one task copies.
constexpr int64_t kRowsPerTask = 64;

bool IsView(const ggml_tensor* t) {
  return t->op == GGML_OP_VIEW || t->op == GGML_OP_RESHAPE || t->op == GGML_OP_PERMUTE || t->op == GGML_OP_CONT;
}

/// Rows r .. r+127 fill one page in order.
bool FillsPage(const std::vector<int64_t>& slots, size_t r) {
  if (slots[r] % kPageTokens != 0 || r + kPageTokens > slots.size()) return false;
  for (size_t t = 1; t < kPageTokens; ++t) {
    if (slots[r + t] != slots[r] + static_cast<int64_t>(t)) return false;
  }
  return true;
}

}  // namespace

bool StoresRows(const ggml_tensor* node, const CacheSide& side) {
  const ggml_tensor* rows = node->src[0];
  const ggml_tensor* index = node->src[1];
  return node->ne[0] == side.shape().row_values && rows->ne[2] == 1 && rows->ne[3] == 1 &&
         index->ne[0] == rows->ne[1] && rows->nb[0] == ggml_type_size(rows->type) &&
         (rows->type == GGML_TYPE_F32 || rows->type == GGML_TYPE_F16) &&
         (index->type == GGML_TYPE_I64 || index->type == GGML_TYPE_I32);
}

const ggml_tensor* PositionsOf(const ggml_tensor* node) {
  const ggml_tensor* t = node->src[0];
  while (t && IsView(t)) t = t->src[0];
  if (!t || t->op != GGML_OP_ROPE) return nullptr;
  const ggml_tensor* positions = t->src[1];
  const int64_t num_rows = node->src[0]->ne[1];
  return positions && positions->type == GGML_TYPE_I32 && positions->ne[0] >= num_rows ? positions : nullptr;
}

void ReadSlots(const ggml_tensor* node, std::vector<int64_t>& slots) {
  const ggml_tensor* index = node->src[1];
  slots.resize(static_cast<size_t>(index->ne[0]));
  for (int64_t r = 0; r < index->ne[0]; ++r) {
    const char* at = static_cast<const char*>(index->data) + r * index->nb[0];
    if (index->type == GGML_TYPE_I64) {
      std::memcpy(&slots[static_cast<size_t>(r)], at, sizeof(int64_t));
    } else {
      int32_t slot = 0;
      std::memcpy(&slot, at, sizeof(slot));
      slots[static_cast<size_t>(r)] = slot;
    }
  }
}

void StoreRows(const ggml_tensor* node, CacheLayer& layer, Side side, const std::vector<int64_t>& slots,
               const std::vector<int32_t>& positions, Executor& executor) {
  const ggml_tensor* rows = node->src[0];
  CacheSide& target = *layer.side(side).packed;
  const CacheSide* keys =
      side == Side::kValue && layer.side(Side::kKey).packed ? layer.side(Side::kKey).packed.get() : nullptr;
  const int num_sinks = target.exact_rule().sinks;
  const auto is_sink = [&](size_t r) {
    if (num_sinks == 0) return false;
    const int64_t slot = slots[r];
    if (keys) return keys->sinks(slot / kPageTokens).Test(static_cast<int>(slot % kPageTokens));
    const int64_t position = positions.empty() ? slot % target.shape().slots_per_stream : positions[r];
    return position < num_sinks;
  };

  // Pages change state on this thread; the rows are then converted by all of them.
  thread_local std::vector<f16_bits*> to;
  to.resize(slots.size());
  for (size_t r = 0; r < slots.size();) {
    if (FillsPage(slots, r)) {
      TokenMask sinks;
      for (int t = 0; t < kPageTokens; ++t) {
        if (is_sink(r + static_cast<size_t>(t))) sinks.Set(t);
      }
      f16_bits* page = target.PageForWrite(slots[r] / kPageTokens, sinks);
      for (int64_t t = 0; t < kPageTokens; ++t) to[r++] = page + t * target.shape().row_values;
    } else {
      to[r] = target.RowForWrite(slots[r], is_sink(r));
      ++r;
    }
  }
  f16_bits* const* destinations = to.data();
  const auto copy = [&](int64_t first, int64_t last) {
    for (int64_t r = first; r < last; ++r) {
      const char* from = static_cast<const char*>(rows->data) + r * rows->nb[1];
      if (rows->type == GGML_TYPE_F32) {
        F16FromF32Row(reinterpret_cast<const float*>(from), destinations[r], target.shape().row_values);
      } else {
        std::memcpy(destinations[r], from, static_cast<size_t>(target.row_bytes()));
      }
    }
  };
  const auto num_rows = static_cast<int64_t>(slots.size());
  if (num_rows <= kRowsPerTask) {
    copy(0, num_rows);
  } else {
    executor.Run((num_rows + kRowsPerTask - 1) / kRowsPerTask,
                 [&](int64_t task, int) { copy(task * kRowsPerTask, std::min(num_rows, (task + 1) * kRowsPerTask)); });
  }
  Count(GlobalCounters().set_rows);
}

}  // namespace kvrazor::ggml
