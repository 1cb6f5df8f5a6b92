// Where the layers of a page lie inside its two kinds of slot.
//
//   16-bit slot   layer 0: K rows [128][num_kv_heads][head_dim], V rows    layer 1: ...
//   sealed slot   layer 0: K page_bytes, V page_bytes                      layer 1: ...
//                 (a side that the recipe keeps in 16 bits has its rows here)
//
// Exact rows lie beside them, as many as a page has exact tokens: page_store.h.
#pragma once

#include <array>
#include <cstdint>
#include <vector>

#include "kvrazor/cache.h"
#include "src/ops/exact_tokens.h"
#include "src/ops/page_set.h"

namespace kvrazor {

struct SideSlot {
  int64_t f16_at = 0;     // bytes from the start of a 16-bit slot
  int64_t sealed_at = 0;  // bytes from the start of a sealed slot
  int64_t sealed_bytes = 0;
};

struct LayerSlots {
  LayerFormat format;
  ExactRule exact;
  std::array<SideSlot, 2> sides;  // [Side]

  const PageLayout& layout(Side side) const { return side == Side::kKey ? format.k : format.v; }
  const SideSlot& slot(Side side) const { return sides[static_cast<size_t>(side)]; }
  bool is_sealed(Side side) const { return layout(side).page_bytes > 0; }
  bool wants_queries() const { return format.k.recipe.codec == Codec::kRazorKey; }
};

struct CacheFormat {
  /// Throws Error if the options are impossible.
  explicit CacheFormat(const CacheOptions& options);

  HeadShape shape;
  std::vector<LayerSlots> layers;
  int64_t row_values = 0;  // values of one token, side and layer
  int64_t f16_slot_bytes = 0;
  int64_t sealed_slot_bytes = 0;  // 0: the recipe never seals
  int64_t sealed_side_bytes = 0;  // of a sealed slot: sides that are quantized
  int64_t f16_side_bytes = 0;     // of a sealed slot: sides kept in 16 bits
  bool keeps_sinks = false;       // some layer, in page 0
  bool chooses_exact = false;     // some layer, in any page
  int64_t residual_pages = 0;     // full pages that stay in 16 bits

  bool seals() const { return sealed_slot_bytes > 0; }
  double bits_per_value() const;
};

/// Pages that hold `tokens`, also for numbers near the end of the range.
inline int64_t PagesFor(int64_t tokens) { return tokens / kPageTokens + (tokens % kPageTokens != 0); }

inline constexpr std::array<Side, 2> kSides = {Side::kKey, Side::kValue};

}  // namespace kvrazor
