// The keys or the values of one layer: what llama.cpp sees as one F16 tensor [row_values, slots_per_stream,
// num_streams].
//
//   slot          0 .. num_slots-1, stream-major; page = slot / 128
//   page state    empty -> staged (16-bit rows) -> sealed (packed bytes) -> staged again if a slot of it is written to
//   packed bytes  page p at p * PageLayout::page_bytes of a reserved range: memory follows the pages ever sealed
//
// A page is sealed only when it is full and KeepPages newer full pages of its stream stand behind it in 16 bits, so
// that a draft that is rolled back never touches sealed pages and a page that is rewritten token by token is not sealed
// again for each of them.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "integrations/ggml/staging_pool.h"
#include "integrations/ggml/virtual_memory.h"
#include "kvrazor/layout.h"
#include "src/ops/backend.h"
#include "src/ops/page_set.h"

namespace kvrazor::ggml {

enum class PageState : uint8_t { kEmpty, kStaged, kSealed };

/// One page of one side.
struct SlotPage {
  PageState state = PageState::kEmpty;
  f16_bits* rows = nullptr;                // staged: [128][row_values], from the pool
  std::unique_ptr<f16_bits[]> exact_rows;  // sealed: [exact.Count()][row_values]
  TokenMask written;                       // slots written to since the page was empty
  TokenMask exact;                         // tokens that stay in 16 bits when the page is sealed
};

class CacheSide {
 public:
  struct Shape {
    Side side = Side::kKey;
    int layer = 0;
    int64_t row_values = 0;
    int64_t slots_per_stream = 0;
    int64_t num_streams = 0;
  };

  CacheSide(const Shape& shape, const Recipe& recipe, StagingPool& pool, const Backend& backend);
  ~CacheSide();
  CacheSide(const CacheSide&) = delete;
  CacheSide& operator=(const CacheSide&) = delete;

  /// Heads and bytes of a sealed page; must be called once before anything is sealed or read back from sealed pages.
  void SetLayout(const PageLayout& layout);
  bool has_layout() const { return layout_.shape.head_dim != 0; }
  const PageLayout& layout() const { return layout_; }
  const Backend& backend() const { return backend_; }

  const Shape& shape() const { return shape_; }
  const char* side_name() const { return shape_.side == Side::kKey ? "keys" : "values"; }
  int64_t row_bytes() const { return shape_.row_values * 2; }
  int64_t num_slots() const { return shape_.slots_per_stream * shape_.num_streams; }
  int64_t num_pages() const { return num_slots() / kPageTokens; }
  int64_t pages_per_stream() const { return shape_.slots_per_stream / kPageTokens; }
  const SlotPage& page(int64_t p) const { return pages_[static_cast<size_t>(p)]; }
  int sink_tokens() const { return sink_tokens_; }

  /// The 16-bit row of a slot that is about to be written; a sealed page is thawed first. `exact`: see SlotPage.
  f16_bits* RowForWrite(int64_t slot, bool exact);
  /// All 128 rows are about to be written: as 128 times RowForWrite, without reading what the page held.
  f16_bits* PageForWrite(int64_t p, const TokenMask& exact);
  /// Installs sealed bytes as they are. exact_rows: [exact.Count()][row_values].
  void InstallSealed(int64_t p, const std::byte* sealed, const TokenMask& written, const TokenMask& exact,
                     const f16_bits* exact_rows);
  /// Page p becomes what page `from_page` of `from` is; both have the same layout.
  void CopyPage(int64_t p, const CacheSide& from, int64_t from_page);
  void ClearPage(int64_t p);
  void Clear();

  /// A page as ops read it; it must not be empty.
  PageSide Read(int64_t p) const;
  /// The same; where nothing was written the page becomes staged zeros (the other side of the layer was written).
  PageSide ReadOrZero(int64_t p);
  const std::byte* sealed_bytes(int64_t p) const { return packed_.data() + p * layout_.page_bytes; }
  /// Rows of slots [first, last), zeros where nothing was written.
  ///   rows  f16 [last - first][row_values]
  void ReadRows(int64_t first, int64_t last, f16_bits* rows) const;

  /// Unified caches: several sequences share a stream. in_batch: sequences of the tokens that are computed together;
  /// hidden_pages: full pages in 16 bits that these tokens do not see, because they are other sequences' newest. Both
  /// add to what stays in 16 bits.
  void NoteSequences(int64_t stream, int in_batch, int hidden_pages);
  /// Full pages of a stream in 16 bits, the one written to last at the back.
  const std::vector<int64_t>& full_pages(int64_t stream) const { return streams_[static_cast<size_t>(stream)].full; }

  /// Pages of a stream that may be sealed now, oldest first.
  void AppendSealable(int64_t stream, std::vector<int64_t>& pages) const;
  void AppendSealable(std::vector<int64_t>& pages) const;
  /// Writes the packed bytes of a staged page: different pages may be encoded at the same time.
  void Encode(int64_t p, const SecondMoment* moment);
  /// After Encode: gives the 16-bit rows back.
  void FinishSeal(int64_t p);

  int64_t packed_bytes() const { return sealed_pages_ * layout_.page_bytes; }
  int64_t exact_bytes() const { return exact_bytes_; }
  int64_t table_bytes() const { return static_cast<int64_t>(pages_.capacity() * sizeof(SlotPage)); }
  int64_t sealed_pages() const { return sealed_pages_; }

  /// What a cache tensor will take, counted before the number of heads is known.
  static int64_t PlannedBytes(const Shape& shape, const Recipe& recipe, const PageLayout& layout);
  /// Full pages that stay in 16 bits behind a page before it is sealed.
  static int64_t ResidualPages(const Recipe& recipe);

 private:
  struct Stream {
    std::vector<int64_t> full;  // staged pages with all slots written, the one written to last at the back
    int sequences = 1;          // most that were ever computed together
    int hidden_pages = 0;       // see NoteSequences, of the last batch
  };

  SlotPage& mutable_page(int64_t p) { return pages_[static_cast<size_t>(p)]; }
  Stream& stream_of(int64_t p) { return streams_[static_cast<size_t>(p / pages_per_stream())]; }
  int64_t KeepPages(const Stream& stream) const;
  void Stage(int64_t p);
  void DropSealed(int64_t p);
  void TouchFull(int64_t p);
  void ForgetFull(int64_t p);
  void SetExactRows(SlotPage& page, std::unique_ptr<f16_bits[]> rows);

  Shape shape_;
  StagingPool& pool_;
  const Backend& backend_;
  int sink_tokens_;
  int64_t residual_pages_;
  PageLayout layout_;
  std::vector<SlotPage> pages_;
  std::vector<Stream> streams_;
  AddressRange packed_;
  int64_t sealed_pages_ = 0;
  int64_t exact_bytes_ = 0;
};

/// One page of one side that is due.
struct SealJob {
  CacheSide* side = nullptr;
  int64_t page = 0;
  const SecondMoment* moment = nullptr;
};

/// Seals pages in parallel.
void SealPages(const std::vector<SealJob>& jobs, Executor& executor);

}  // namespace kvrazor::ggml
