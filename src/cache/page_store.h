// Pages with their reference counts. A page can be there in 16 bits, sealed, or both: forks that share a full page and seal
// it at different times read one sealed copy, and each keeps its 16-bit window until its own turn.
#pragma once

#include <array>
#include <cstdint>
#include <memory>
#include <vector>

#include "src/cache/cache_format.h"
#include "src/cache/slot_pool.h"
#include "src/ops/exact_tokens.h"

namespace kvrazor {

using PageId = int32_t;

/// Tokens of a page that stay in 16 bits beside its sealed sides, with their rows: as much memory as there are tokens.
struct PageExact {
  struct Layer {
    std::array<TokenMask, 2> tokens;  // [Side]; none where the side is not sealed
    std::array<int64_t, 2> rows_at;   // [Side] values from the start of the rows
    ExactTrace trace;                 // state of the rule after the page; all zeros if nothing was chosen up to here
  };
  std::vector<Layer> layers;
  std::unique_ptr<f16_bits[]> rows;  // [side of a layer][exact tokens][num_kv_heads][head_dim]
  int64_t num_values = 0;
  int64_t num_chosen_values = 0;  // of tokens that are no sinks

  int64_t row_bytes() const { return num_values * int64_t{sizeof(f16_bits)}; }
  int64_t table_bytes() const {
    return static_cast<int64_t>(sizeof(PageExact) + layers.capacity() * sizeof(layers[0]));
  }
};

struct Page {
  int32_t f16_slot = -1;
  int32_t sealed_slot = -1;
  int32_t f16_refs = 0;              // page tables that read the 16-bit rows
  int32_t sealed_refs = 0;           // page tables that read the sealed bytes, and begun steps that will seal it
  int32_t reserving = 0;             // of sealed_refs: begun steps
  bool is_sealed = false;            // the sealed bytes are written
  std::unique_ptr<PageExact> exact;  // with the sealed bytes; nullptr: no exact tokens

  // Marks of Begin while it counts; clear between calls.
  int32_t planned_drops = 0;
  bool planned_seal = false;

  int32_t num_readers() const { return f16_refs + sealed_refs - reserving; }
};

class PageStore {
 public:
  PageStore(const CacheFormat& format, int64_t sealed_pages, int64_t f16_pages);

  Page& operator[](PageId id) { return pages_[static_cast<size_t>(id)]; }
  const Page& operator[](PageId id) const { return pages_[static_cast<size_t>(id)]; }
  const SlotPool& sealed() const { return sealed_; }
  const SlotPool& f16() const { return f16_; }
  const std::vector<Page>& pages() const { return pages_; }

  // None of these fails; the slots they take must be there.

  /// A page with a fresh 16-bit slot, referenced once.
  PageId New();
  /// A page with the first `num_tokens` 16-bit rows of `id`, which loses one 16-bit reference.
  PageId CopyOnWrite(PageId id, int num_tokens);
  /// Moves the 16-bit rows of `id` (one reference) into a page of their own, away from the sealed bytes of other readers.
  PageId Detach(PageId id);

  /// Rows [first, first + count) of a 16-bit page are about to be written.
  void TouchF16(PageId id, int layer, Side side, int64_t first, int64_t count);
  /// Gives the memory of rows from `first` on back if no other page table reads them.
  void ReleaseF16(PageId id, int layer, Side side, int64_t first);
  void TrimF16(PageId id, int64_t num_tokens);  // in all layers

  void AddF16(PageId id) { ++(*this)[id].f16_refs; }
  void DropF16(PageId id);
  void AddSealed(PageId id) { ++(*this)[id].sealed_refs; }
  void DropSealed(PageId id);

  /// Holds a sealed reference for a begun step; takes a slot if the page has none yet.
  void Reserve(PageId id);
  void DropReserved(PageId id);
  /// The sealed bytes of one side are about to be written. Returns their number.
  int64_t TouchSealed(PageId id, int layer, Side side);
  /// The exact tokens of a page that is about to be sealed, instead of any that it had; nullptr: none.
  void SetExact(PageId id, std::unique_ptr<PageExact> exact);
  /// The sealed bytes of all layers are written.
  void MarkSealed(PageId id);
  /// The step has ended and the bytes are written: its 16-bit reference becomes the sealed one.
  void SwitchToSealed(PageId id);

  // Where the rows are.

  f16_bits* F16Rows(PageId id, int layer, Side side) const;  // [128][num_kv_heads][head_dim]
  std::byte* SealedBytes(PageId id, int layer, Side side) const;
  TokenMask ExactTokens(PageId id, int layer, Side side) const;
  f16_bits* ExactRows(PageId id, int layer, Side side) const;  // [exact tokens][num_kv_heads][head_dim]; nullptr: none
  /// How an op reads the page: its sealed form or its 16-bit rows.
  PageSide View(PageId id, int layer, Side side, bool sealed) const;

  int64_t num_sealed() const { return num_sealed_; }
  int64_t exact_bytes() const { return exact_bytes_; }
  int64_t chosen_bytes() const { return chosen_bytes_; }  // of exact_bytes: without sinks
  int64_t table_bytes() const;

 private:
  PageId TakeRecord();
  void GiveRecordIfUnused(PageId id);

  const CacheFormat& format_;
  SlotPool sealed_;
  SlotPool f16_;
  std::vector<Page> pages_;  // ever used; every live one has a slot, so there are never more than slots
  std::vector<PageId> free_records_;
  int64_t exact_bytes_ = 0;
  int64_t chosen_bytes_ = 0;
  int64_t exact_table_bytes_ = 0;
  int64_t num_sealed_ = 0;
};

}  // namespace kvrazor
