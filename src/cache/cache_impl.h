// The state of a cache.
#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kvrazor/cache.h"
#include "src/cache/cache_format.h"
#include "src/cache/page_store.h"
#include "src/ops/backend.h"

namespace kvrazor {

struct Sequence {
  std::vector<PageId> pages;  // page table, the pages of a begun step included
  int64_t kv_len = 0;         // committed tokens
  int64_t num_sealed = 0;     // leading pages that are read sealed; the others are read in 16 bits

  // The step under way.
  int64_t num_new = 0;      // its tokens; 0: none
  int64_t num_sealing = 0;  // pages from num_sealed on that Commit will seal; their sealed references are held
  int next_layer = 0;       // layers below have been appended

  uint64_t mark = 0;  // last call that named the sequence, to find handles given twice

  bool in_step() const { return num_new > 0; }
  int64_t sealed_len() const { return num_sealed * kPageTokens; }
};

struct Cache::Impl {
  explicit Impl(const CacheOptions& options);

  // Lookup and checks; `op` names the public function in messages.
  const Sequence& Find(SequenceId id, const char* op) const;
  Sequence& Find(SequenceId id, const char* op) { return const_cast<Sequence&>(std::as_const(*this).Find(id, op)); }
  Sequence& FindIdle(SequenceId id, const char* op);
  const LayerSlots& Layer(int layer, const char* op) const;
  /// Sequences of one call, each once and in a step.
  std::vector<Sequence*> FindStep(std::span<const SequenceId> ids, const char* op);
  void CheckView(const TensorView& view, const char* what, int64_t num_tokens, int num_heads, const char* op) const;
  int64_t CheckQueries(int layer, std::span<const SequenceId> ids, const TensorView& q, const char* op) const;

  // Begin in two halves: what the step needs, then taking it.
  struct Need {
    int64_t f16 = 0, sealed = 0;
  };
  Need Plan(Sequence& seq, int64_t count);
  void ClearPlan(const Sequence& seq, int64_t count);
  void Take(Sequence& seq, int64_t count);
  /// Full pages that may be sealed when a sequence has `tokens`.
  int64_t SealedPagesAt(int64_t tokens) const;

  void ResizePages(Sequence& seq, int64_t num_pages);
  /// Rows behind the last token, from a step or tokens that are gone, give their memory back.
  void TrimLastPage(const Sequence& seq);
  void CancelStep(Sequence& seq);
  /// A page that a step seals, and where it stands.
  struct ToSeal {
    PageId id;
    const Sequence* seq;
    int64_t index;  // of the page in its sequence
  };
  void SealPages(std::span<Sequence* const> seqs, Executor& executor);
  std::vector<ToSeal> PagesToSeal(std::span<Sequence* const> seqs);
  /// Decides which tokens of the pages stay in 16 bits. Throws std::bad_alloc; then the step can be committed again.
  void ChooseExactTokens(std::span<const ToSeal> pages, Executor& executor);
  ExactTrace TraceBefore(const ToSeal& page, int layer) const;
  void SealSide(PageId id, int layer, Side side);
  void ThawPage(PageId from, PageId to, int num_tokens, std::vector<float>& scratch);
  void UpdatePeak();
  int64_t TotalBytes() const;
  int64_t TableBytes() const;

  CacheOptions options;
  CacheFormat format;
  CachePlan plan;
  const Backend& backend;
  PageStore store;
  std::vector<SecondMoment> moments;  // [layer]; empty shape where keys are not razor
  std::unordered_map<SequenceId, Sequence> sequences;
  int64_t next_id = 0;
  uint64_t next_mark = 1;
  int64_t table_entries = 0;
  int64_t moment_bytes = 0;
  int64_t sealing_bytes = 0;  // written of pages that are being sealed
  int64_t peak_bytes = 0;
  int64_t pages_sealed = 0, pages_thawed = 0, pages_copied = 0;
};

}  // namespace kvrazor
