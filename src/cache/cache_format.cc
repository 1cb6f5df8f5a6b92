#include "src/cache/cache_format.h"

#include <algorithm>
#include <limits>

#include "src/cache/message.h"
#include "src/ops/second_moment.h"

namespace kvrazor {
namespace {

constexpr int kMaxLayers = 4096;

int64_t RoundUp(int64_t n, int64_t multiple) { return (n + multiple - 1) / multiple * multiple; }

void CheckOptions(const CacheOptions& o) {
  if (o.num_layers < 1 || o.num_layers > kMaxLayers) {
    Fail("cache: num_layers is ", o.num_layers, "; 1 to ", kMaxLayers, " layers are possible.");
  }
  if (o.max_tokens < 0 || o.sealed_pages < 0 || o.f16_pages < 0) {
    Fail("cache: a limit is negative (max_tokens ", o.max_tokens, ", sealed_pages ", o.sealed_pages, ", f16_pages ",
         o.f16_pages, "); give max_tokens, or the pages of both pools.");
  }
  if (o.max_tokens == 0 && o.f16_pages == 0) {
    Fail("cache: the size is missing; set max_tokens, or sealed_pages and f16_pages.");
  }
  if (o.max_sequences < 1) Fail("cache: max_sequences is ", o.max_sequences, "; at least 1 is needed.");
  if (o.max_new_tokens < 1) Fail("cache: max_new_tokens is ", o.max_new_tokens, "; a step has at least 1 new token.");
  if (o.query_stride < 1) Fail("cache: query_stride is ", o.query_stride, "; 1 takes every query, 4 every fourth.");
  for (const LayerOverride& layers : o.recipe.ForModel(o.num_layers).overrides) {
    if (layers.last >= o.num_layers) {
      Fail("cache: the recipe sets layers ", layers.first, " to ", layers.last, ", the cache has layers 0 to ",
           o.num_layers - 1, "; shorten the range.");
    }
  }
  Validate(o.recipe);
}

}  // namespace

CacheFormat::CacheFormat(const CacheOptions& options) : shape(options.shape) {
  CheckOptions(options);
  row_values = int64_t{shape.num_kv_heads} * shape.head_dim;
  const Recipe whole = options.recipe.ForModel(options.num_layers);
  for (int layer = 0; layer < options.num_layers; ++layer) {
    const Recipe recipe = whole.ForLayer(layer);
    LayerSlots slots;
    slots.format.k = MakePageLayout(recipe.k, Side::kKey, shape);
    slots.format.v = MakePageLayout(recipe.v, Side::kValue, shape);
    slots.exact = MakeExactRule(recipe);
    keeps_sinks |= slots.exact.sinks > 0;
    chooses_exact |= slots.exact.chooses();
    for (const Side side : kSides) {
      SideSlot& slot = slots.sides[static_cast<size_t>(side)];
      const PageLayout& layout = slots.layout(side);
      slot.f16_at = f16_slot_bytes;
      f16_slot_bytes += layout.f16_page_bytes();
      slot.sealed_at = sealed_side_bytes + f16_side_bytes;
      slot.sealed_bytes = slots.is_sealed(side) ? RoundUp(layout.page_bytes, 64) : layout.f16_page_bytes();
      (slots.is_sealed(side) ? sealed_side_bytes : f16_side_bytes) += slot.sealed_bytes;
    }
    layers.push_back(slots);
  }
  sealed_slot_bytes = sealed_side_bytes > 0 ? sealed_side_bytes + f16_side_bytes : 0;
  residual_pages = options.recipe.residual_tokens / kPageTokens;
}

double CacheFormat::bits_per_value() const {
  if (!seals()) return 16;
  return 8.0 * static_cast<double>(sealed_slot_bytes) /
         static_cast<double>(2 * kPageTokens * row_values * static_cast<int64_t>(layers.size()));
}

// A sequence has at most residual_pages full and one filling 16-bit page between steps, and n new tokens touch at most
// n / 128 + 2 pages of which one was there before; so a step of n tokens over all sequences needs no more than
// max_sequences * (residual_pages + 2) + n / 128. Never more than the pages of all tokens and one more for each sequence.
CachePlan PlanCache(const CacheOptions& options) {
  const CacheFormat format(options);
  CachePlan plan;
  const int64_t all_pages = PagesFor(options.max_tokens);
  const int64_t f16_limit = all_pages > std::numeric_limits<int64_t>::max() - options.max_sequences
                                ? all_pages
                                : all_pages + options.max_sequences;
  const int64_t window =
      int64_t{options.max_sequences} * (format.residual_pages + 2) + options.max_new_tokens / kPageTokens;
  plan.f16_pages = options.f16_pages > 0 ? options.f16_pages : format.seals() ? std::min(window, f16_limit) : f16_limit;
  if (format.seals())
    plan.sealed_pages = options.sealed_pages > 0 ? options.sealed_pages : options.max_tokens / kPageTokens;
  if (format.seals() && plan.sealed_pages == 0 && options.max_tokens == 0) {
    Fail("cache: the recipe '", options.recipe.name,
         "' seals pages and there is none; set sealed_pages, or max_tokens.");
  }
  constexpr int64_t kMaxPages = std::numeric_limits<int32_t>::max() / 2;
  if (plan.sealed_pages > kMaxPages || plan.f16_pages > kMaxPages) {
    Fail("cache: ", plan.sealed_pages, " sealed and ", plan.f16_pages, " 16-bit pages are too many; ", kMaxPages,
         " of each are possible.");
  }
  plan.sealed_page_bytes = format.sealed_slot_bytes;
  plan.f16_page_bytes = format.f16_slot_bytes;
  int64_t exact_rows = 0;  // of one sequence, all layers and sides
  for (const LayerSlots& layer : format.layers) {
    for (const Side side : kSides) {
      if (layer.is_sealed(side)) exact_rows += layer.exact.MostTokens(plan.sealed_pages * kPageTokens);
    }
  }
  int64_t sealed_bytes = 0, f16_bytes = 0;
  if (__builtin_mul_overflow(plan.sealed_pages, plan.sealed_page_bytes, &sealed_bytes) ||
      __builtin_mul_overflow(plan.f16_pages, plan.f16_page_bytes, &f16_bytes) ||
      __builtin_add_overflow(sealed_bytes, f16_bytes, &plan.pool_bytes) ||
      __builtin_mul_overflow(exact_rows * format.row_values * int64_t{sizeof(f16_bits)}, options.max_sequences,
                             &plan.exact_bytes)) {
    Fail("cache: ", plan.sealed_pages, " sealed and ", plan.f16_pages, " 16-bit pages of ", options.max_sequences,
         " sequences are more bytes than can be counted; ask for fewer.");
  }
  for (const LayerSlots& layer : format.layers) {
    if (layer.wants_queries()) plan.moment_bytes += SecondMoment::BytesFor(format.shape);
  }
  return plan;
}

}  // namespace kvrazor
