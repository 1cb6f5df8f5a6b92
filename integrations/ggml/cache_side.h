// The keys or the values of one layer: what llama.cpp sees as one F16 tensor [row_values, slots_per_stream,
// num_streams].
//
//   slot          0 .. num_slots-1, stream-major; page = slot / 128
//   page state    empty -> staged (16-bit rows) -> sealed (packed bytes) -> staged again if a slot of it is written to
//   packed bytes  page p at p * PageLayout::page_bytes of a reserved range: memory follows the pages that are sealed
//   tables        4 bytes a page, more only for those that are staged or hold exact rows
//
// Outlier tokens are traced per stream, in the order of its slots: the state before a page is that after the nearest page
// below it that has any. A page that is written to again forgets its own and chooses anew when it is sealed again.
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
#include "kvrazor/layout.h"
#include "src/core/virtual_memory.h"
#include "src/ops/backend.h"
#include "src/ops/exact_tokens.h"
#include "src/ops/page_set.h"

namespace kvrazor::ggml {

enum class PageState : uint8_t { kEmpty, kStaged, kSealed };

/// Outlier tokens of a sealed page (src/ops/exact_tokens.h).
struct ChosenTokens {
  TokenMask tokens;
  ExactTrace trace;  // keys: state of the rule after the page
};

/// Of a page that is staged, or sealed with exact rows. Exact tokens, which stay in 16 bits when the page is sealed, are
/// sinks, known when they are written, and those that are chosen when it is sealed.
struct PageDetail {
  TokenMask written;  // slots written to since the page was empty
  TokenMask sinks;
  std::unique_ptr<ChosenTokens> chosen;    // nullptr: none
  std::unique_ptr<f16_bits[]> exact_rows;  // sealed: [exact.Count()][row_values]
  int32_t staged = -1;                     // page of the pool
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
  PageState state(int64_t p) const { return static_cast<PageState>(pages_[static_cast<size_t>(p)] & 3); }
  TokenMask written(int64_t p) const;
  TokenMask sinks(int64_t p) const { return detail(p) ? detail(p)->sinks : TokenMask(); }
  const ChosenTokens* chosen(int64_t p) const { return detail(p) ? detail(p)->chosen.get() : nullptr; }
  TokenMask exact(int64_t p) const { return detail(p) ? ExactOf(*detail(p)) : TokenMask(); }
  const f16_bits* exact_rows(int64_t p) const { return detail(p) ? detail(p)->exact_rows.get() : nullptr; }
  /// [128][row_values] of a staged page; rows that were not written are zeros.
  const f16_bits* staged_rows(int64_t p) const { return pool_.rows(detail(p)->staged); }
  const ExactRule& exact_rule() const { return rule_; }

  /// The 16-bit row of a slot that is about to be written; a sealed page is thawed first.
  f16_bits* RowForWrite(int64_t slot, bool is_sink);
  /// All 128 rows are about to be written: as 128 times RowForWrite, without reading what the page held.
  f16_bits* PageForWrite(int64_t p, const TokenMask& sinks);
  /// Installs the sealed bytes of a full page as they are. exact_rows: [exact tokens][row_values].
  void InstallSealed(int64_t p, const std::byte* sealed, const TokenMask& sinks, const ChosenTokens* chosen,
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
  /// Keys, before Encode: decides which tokens of a staged page stay in 16 bits; pages are decided in the order given.
  void ChooseExactTokens(int64_t p);
  /// Values, before Encode: the tokens that their keys have.
  void ChooseExactTokensOf(const CacheSide& keys, int64_t p);
  /// Before Encode: counts the memory of the packed bytes.
  void BeginSeal(int64_t p) { packed_.Touch(p * layout_.page_bytes, layout_.page_bytes); }
  /// Writes the packed bytes of a staged page: different pages may be encoded at the same time.
  void Encode(int64_t p, const SecondMoment* moment);
  /// After Encode: gives the 16-bit rows back.
  void FinishSeal(int64_t p);

  /// Memory behind sealed pages, in whole system pages.
  int64_t packed_bytes() const { return packed_.committed_bytes(); }
  int64_t exact_bytes() const { return exact_bytes_; }
  int64_t chosen_bytes() const { return chosen_bytes_; }  ///< of exact_bytes: outlier tokens
  int64_t table_bytes() const { return table_bytes_; }
  int64_t sealed_pages() const { return sealed_pages_; }

  /// What a cache tensor will take at most, as it is filled one token at a time; counted before the number of heads is
  /// known.
  static int64_t PlannedBytes(const Shape& shape, const Recipe& recipe, const PageLayout& layout);
  /// Full pages that stay in 16 bits behind a page before it is sealed.
  static int64_t ResidualPages(const Recipe& recipe);

 private:
  struct Stream {
    std::vector<int64_t> full;  // staged pages with all slots written, the one written to last at the back
    int sequences = 1;          // most that were ever computed together
    int hidden_pages = 0;       // see NoteSequences, of the last batch
  };

  const PageDetail* detail(int64_t p) const;
  PageDetail& mutable_detail(int64_t p) { return const_cast<PageDetail&>(*detail(p)); }
  PageDetail& AddDetail(int64_t p);
  void DropDetail(int64_t p);
  void SetState(int64_t p, PageState state);
  void CountTables();
  Stream& stream_of(int64_t p) { return streams_[static_cast<size_t>(p / pages_per_stream())]; }
  int64_t KeepPages(const Stream& stream) const;
  void Stage(int64_t p);
  PageDetail& AddStaged(int64_t p);
  void GiveStaged(int64_t p);
  void DropSealed(int64_t p);
  void TouchFull(int64_t p);
  void ForgetFull(int64_t p);
  static TokenMask ExactOf(const PageDetail& page);
  ExactTrace TraceBefore(int64_t p) const;
  void SetChosen(PageDetail& page, const ChosenTokens* chosen);
  void SetExactRows(PageDetail& page, std::unique_ptr<f16_bits[]> rows);

  Shape shape_;
  StagingPool& pool_;
  const Backend& backend_;
  ExactRule rule_;
  int64_t residual_pages_;
  PageLayout layout_;
  std::vector<uint32_t> pages_;      // PageState, and 4 times 1 + the index of its detail
  std::vector<PageDetail> details_;  // as many as were ever needed at once
  std::vector<int32_t> free_details_;
  std::vector<Stream> streams_;
  CommittedRange packed_;
  int64_t sealed_pages_ = 0;
  int64_t num_chosen_ = 0;  // ChosenTokens
  int64_t exact_bytes_ = 0;
  int64_t chosen_bytes_ = 0;
  int64_t table_bytes_ = 0;
};

/// One page of one side that is due.
struct SealJob {
  CacheSide* side = nullptr;
  int64_t page = 0;
  const SecondMoment* moment = nullptr;
};

/// Seals pages in parallel, a few at a time: 16-bit rows are given back before the next packed bytes take memory.
void SealPages(const std::vector<SealJob>& jobs, Executor& executor);

}  // namespace kvrazor::ggml
