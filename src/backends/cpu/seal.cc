#include "src/backends/cpu/seal.h"

#include <cstring>
#include <string>

#include "kvrazor/error.h"

namespace kvrazor::cpu {

void Seal(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
          std::byte* page) {
  const SideRecipe& recipe = layout.recipe;
  if (recipe.codec == Codec::kF16 || layout.page_bytes == 0) {
    throw Error("seal: pages in 16 bits are never sealed; pass a layout with codes, or keep the rows.");
  }
  if (reinterpret_cast<uintptr_t>(page) % 64 != 0)
    throw Error("seal: the page is not 64-byte aligned; take pages from a page pool.");
  std::memset(page, 0, static_cast<size_t>(layout.page_bytes));  // padding too: equal pages are equal bytes
  switch (recipe.codec) {
    case Codec::kF16: return;
    case Codec::kAffine:
      if (recipe.axis == Axis::kPerChannel && layout.side == Side::kValue)
        throw Error("seal: affine values have groups along channels (per token); change the recipe's axis.");
      return SealAffine(layout, rows, exact, page);
    case Codec::kCodebook: return SealCodebook(layout, rows, exact, page);
    case Codec::kRazorKey:
      if (moment != nullptr && !moment->empty() && moment->shape() != layout.shape) {
        throw Error("seal: the second moment is of " + std::to_string(moment->shape().num_kv_heads) +
                    " heads of head_dim " + std::to_string(moment->shape().head_dim) + ", the page of " +
                    std::to_string(layout.shape.num_kv_heads) + " of " + std::to_string(layout.shape.head_dim) +
                    "; keep one SecondMoment a layer.");
      }
      return SealRazorKey(layout, rows, exact, moment, page);
    case Codec::kRazorValue: return SealRazorValue(layout, rows, exact, page);
  }
}

}  // namespace kvrazor::cpu
