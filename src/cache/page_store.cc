#include "src/cache/page_store.h"

#include <cstring>
#include <utility>

namespace kvrazor {

PageStore::PageStore(const CacheFormat& format, int64_t sealed_pages, int64_t f16_pages)
    : format_(format),
      sealed_("sealed pages", sealed_pages, format.sealed_slot_bytes),
      f16_("16-bit pages", f16_pages, format.f16_slot_bytes) {
  pages_.reserve(static_cast<size_t>(sealed_pages + f16_pages));
  free_records_.reserve(pages_.capacity());
}

PageId PageStore::TakeRecord() {
  if (free_records_.empty()) {
    pages_.emplace_back();
    return static_cast<PageId>(pages_.size() - 1);
  }
  const PageId id = free_records_.back();
  free_records_.pop_back();
  return id;
}

void PageStore::GiveRecordIfUnused(PageId id) {
  const Page& page = (*this)[id];
  if (page.f16_refs == 0 && page.sealed_refs == 0) free_records_.push_back(id);
}

PageId PageStore::New() {
  const PageId id = TakeRecord();
  Page& page = (*this)[id];
  page.f16_slot = f16_.Take();
  page.f16_refs = 1;
  return id;
}

PageId PageStore::CopyOnWrite(PageId id, int num_tokens) {
  const PageId copy = New();
  const size_t bytes = static_cast<size_t>(num_tokens * format_.row_values) * sizeof(f16_bits);
  for (int layer = 0; layer < static_cast<int>(format_.layers.size()); ++layer) {
    for (const Side side : kSides) {
      TouchF16(copy, layer, side, 0, num_tokens);
      std::memcpy(F16Rows(copy, layer, side), F16Rows(id, layer, side), bytes);
    }
  }
  DropF16(id);
  return copy;
}

PageId PageStore::Detach(PageId id) {
  const PageId own = TakeRecord();
  (*this)[own].f16_slot = std::exchange((*this)[id].f16_slot, -1);
  (*this)[own].f16_refs = std::exchange((*this)[id].f16_refs, 0);
  return own;
}

void PageStore::TouchF16(PageId id, int layer, Side side, int64_t first, int64_t count) {
  const int64_t row_bytes = format_.row_values * int64_t{sizeof(f16_bits)};
  const SideSlot& slot = format_.layers[static_cast<size_t>(layer)].slot(side);
  f16_.Touch((*this)[id].f16_slot, slot.f16_at + first * row_bytes, count * row_bytes);
}

void PageStore::ReleaseF16(PageId id, int layer, Side side, int64_t first) {
  const Page& page = (*this)[id];
  if (page.f16_refs != 1) return;
  const int64_t row_bytes = format_.row_values * int64_t{sizeof(f16_bits)};
  const SideSlot& slot = format_.layers[static_cast<size_t>(layer)].slot(side);
  f16_.Release(page.f16_slot, slot.f16_at + first * row_bytes, (kPageTokens - first) * row_bytes);
}

void PageStore::TrimF16(PageId id, int64_t num_tokens) {
  for (int layer = 0; layer < static_cast<int>(format_.layers.size()); ++layer) {
    for (const Side side : kSides) ReleaseF16(id, layer, side, num_tokens);
  }
}

void PageStore::DropF16(PageId id) {
  Page& page = (*this)[id];
  if (--page.f16_refs > 0) return;
  f16_.Give(std::exchange(page.f16_slot, -1));
  GiveRecordIfUnused(id);
}

void PageStore::Reserve(PageId id) {
  Page& page = (*this)[id];
  ++page.sealed_refs;
  ++page.reserving;
  if (page.sealed_slot < 0) page.sealed_slot = sealed_.Take();
}

void PageStore::DropReserved(PageId id) {
  --(*this)[id].reserving;
  DropSealed(id);
}

int64_t PageStore::TouchSealed(PageId id, int layer, Side side) {
  const SideSlot& slot = format_.layers[static_cast<size_t>(layer)].slot(side);
  sealed_.Touch((*this)[id].sealed_slot, slot.sealed_at, slot.sealed_bytes);
  return slot.sealed_bytes;
}

void PageStore::SetExact(PageId id, std::unique_ptr<PageExact> exact) {
  std::unique_ptr<PageExact>& held = (*this)[id].exact;
  const auto count = [&](int64_t sign) {
    if (!held) return;
    exact_bytes_ += sign * held->row_bytes();
    chosen_bytes_ += sign * held->num_chosen_values * int64_t{sizeof(f16_bits)};
    exact_table_bytes_ += sign * held->table_bytes();
  };
  count(-1);
  held = std::move(exact);
  count(+1);
}

void PageStore::MarkSealed(PageId id) {
  (*this)[id].is_sealed = true;
  ++num_sealed_;
}

void PageStore::SwitchToSealed(PageId id) {
  --(*this)[id].reserving;
  DropF16(id);
}

void PageStore::DropSealed(PageId id) {
  Page& page = (*this)[id];
  if (--page.sealed_refs > 0) return;
  sealed_.Give(std::exchange(page.sealed_slot, -1));
  num_sealed_ -= page.is_sealed;
  page.is_sealed = false;
  SetExact(id, nullptr);
  GiveRecordIfUnused(id);
}

f16_bits* PageStore::F16Rows(PageId id, int layer, Side side) const {
  const SideSlot& slot = format_.layers[static_cast<size_t>(layer)].slot(side);
  return reinterpret_cast<f16_bits*>(f16_.at((*this)[id].f16_slot) + slot.f16_at);
}

std::byte* PageStore::SealedBytes(PageId id, int layer, Side side) const {
  return sealed_.at((*this)[id].sealed_slot) + format_.layers[static_cast<size_t>(layer)].slot(side).sealed_at;
}

TokenMask PageStore::ExactTokens(PageId id, int layer, Side side) const {
  const Page& page = (*this)[id];
  if (!page.exact) return {};
  return page.exact->layers[static_cast<size_t>(layer)].tokens[static_cast<size_t>(side)];
}

f16_bits* PageStore::ExactRows(PageId id, int layer, Side side) const {
  if (!ExactTokens(id, layer, side).Any()) return nullptr;
  const PageExact& exact = *(*this)[id].exact;
  return exact.rows.get() + exact.layers[static_cast<size_t>(layer)].rows_at[static_cast<size_t>(side)];
}

PageSide PageStore::View(PageId id, int layer, Side side, bool sealed) const {
  PageSide view;
  const LayerSlots& slots = format_.layers[static_cast<size_t>(layer)];
  if (!sealed) {
    view.rows = F16Rows(id, layer, side);
  } else if (!slots.is_sealed(side)) {
    view.rows = reinterpret_cast<const f16_bits*>(SealedBytes(id, layer, side));
  } else {
    view.sealed = SealedBytes(id, layer, side);
    view.exact_rows = ExactRows(id, layer, side);
    view.exact = ExactTokens(id, layer, side);
  }
  return view;
}

int64_t PageStore::table_bytes() const {
  return static_cast<int64_t>(pages_.capacity() * sizeof(Page) + free_records_.capacity() * sizeof(PageId)) +
         sealed_.table_bytes() + f16_.table_bytes() + exact_table_bytes_;
}

}  // namespace kvrazor
