// Sequences and the life of their pages.
#include "kvrazor/cache.h"

#include <algorithm>
#include <new>
#include <utility>

#include "src/cache/cache_impl.h"
#include "src/cache/message.h"

namespace kvrazor {

Cache::Impl::Impl(const CacheOptions& o)
    : options(o),
      format(o),
      plan(PlanCache(o)),
      backend(o.backend != nullptr ? *o.backend : CpuBackend()),
      store(format, plan.sealed_pages, plan.f16_pages) {
  for (const LayerSlots& layer : format.layers) {
    moments.push_back(layer.wants_queries() ? SecondMoment(format.shape) : SecondMoment());
    moment_bytes += moments.back().bytes();
  }
  UpdatePeak();
}

const Sequence& Cache::Impl::Find(SequenceId id, const char* op) const {
  const auto found = sequences.find(id);
  if (found == sequences.end()) {
    Fail("cache: ", op, ": no sequence ", static_cast<int64_t>(id), "; ", sequences.size(),
         " are open. Use a handle from Open or Fork that was not freed.");
  }
  return found->second;
}

Sequence& Cache::Impl::FindIdle(SequenceId id, const char* op) {
  Sequence& seq = Find(id, op);
  if (seq.in_step()) {
    Fail("cache: ", op, ": sequence ", static_cast<int64_t>(id), " is in a step of ", seq.num_new,
         " tokens; Commit or Cancel it first.");
  }
  return seq;
}

std::vector<Sequence*> Cache::Impl::FindStep(std::span<const SequenceId> ids, const char* op) {
  std::vector<Sequence*> found;
  found.reserve(ids.size());
  const uint64_t mark = next_mark++;
  for (const SequenceId id : ids) {
    Sequence& seq = Find(id, op);
    if (!seq.in_step())
      Fail("cache: ", op, ": sequence ", static_cast<int64_t>(id), " is in no step; call Begin first.");
    if (std::exchange(seq.mark, mark) == mark)
      Fail("cache: ", op, ": sequence ", static_cast<int64_t>(id), " is given twice; give each once.");
    found.push_back(&seq);
  }
  return found;
}

int64_t Cache::Impl::SealedPagesAt(int64_t tokens) const {
  return format.seals() ? std::max<int64_t>(0, tokens / kPageTokens - format.residual_pages) : 0;
}

int64_t Cache::Impl::TableBytes() const {
  return store.table_bytes() + table_entries * int64_t{sizeof(PageId)} +
         static_cast<int64_t>(sequences.size() * sizeof(Sequence)) + moment_bytes;
}

int64_t Cache::Impl::TotalBytes() const {
  return store.num_sealed() * format.sealed_slot_bytes + sealing_bytes + store.f16().committed_bytes() +
         store.exact_bytes() + TableBytes();
}

void Cache::Impl::UpdatePeak() { peak_bytes = std::max(peak_bytes, TotalBytes()); }

/// Drops pages from the end that are in 16 bits, or sealed if they lie below num_sealed.
void Cache::Impl::ResizePages(Sequence& seq, int64_t num_pages) {
  while (static_cast<int64_t>(seq.pages.size()) > num_pages) {
    const PageId id = seq.pages.back();
    seq.pages.pop_back();
    --table_entries;
    if (static_cast<int64_t>(seq.pages.size()) < seq.num_sealed) {
      seq.num_sealed = static_cast<int64_t>(seq.pages.size());
      store.DropSealed(id);
    } else {
      store.DropF16(id);
    }
  }
}

void Cache::Impl::TrimLastPage(const Sequence& seq) {
  const int64_t last_tokens = seq.kv_len % kPageTokens;
  if (last_tokens != 0 && static_cast<int64_t>(seq.pages.size()) > seq.num_sealed)
    store.TrimF16(seq.pages.back(), last_tokens);
}

void Cache::Impl::ThawPage(PageId from, PageId to, int num_tokens, std::vector<float>& scratch) {
  for (int layer = 0; layer < options.num_layers; ++layer) {
    for (const Side side : kSides) {
      const PageSide page = store.View(from, layer, side, /*sealed=*/true);
      store.TouchF16(to, layer, side, 0, num_tokens);
      f16_bits* rows = store.F16Rows(to, layer, side);
      const int64_t values = num_tokens * format.row_values;
      if (page.rows != nullptr) {
        std::copy_n(page.rows, values, rows);
        continue;
      }
      backend.Dequantize(format.layers[static_cast<size_t>(layer)].layout(side), page, 0, num_tokens, scratch.data());
      for (int64_t i = 0; i < values; ++i) rows[i] = F16FromF32(scratch[static_cast<size_t>(i)]);
    }
  }
}

Cache::Cache(const CacheOptions& options) {
  try {
    impl_ = std::make_unique<Impl>(options);
  } catch (const std::bad_alloc&) {
    Fail("cache: no memory for the tables of a cache of ", options.num_layers, " layers and ", options.max_tokens,
         " tokens; ask for fewer.");
  }
}
Cache::~Cache() = default;
Cache::Cache(Cache&&) noexcept = default;
Cache& Cache::operator=(Cache&&) noexcept = default;

const CacheOptions& Cache::options() const { return impl_->options; }
const PageLayout& Cache::layout(int layer, Side side) const { return impl_->Layer(layer, "layout").layout(side); }

SequenceId Cache::Open() {
  const SequenceId id{impl_->next_id};
  impl_->sequences.try_emplace(id);
  ++impl_->next_id;
  impl_->UpdatePeak();
  return id;
}

void Cache::Free(SequenceId id) {
  Sequence& seq = impl_->Find(id, "Free");
  if (seq.in_step()) impl_->CancelStep(seq);
  impl_->ResizePages(seq, 0);
  impl_->sequences.erase(id);
}

bool Cache::IsOpen(SequenceId id) const { return impl_->sequences.contains(id); }
int64_t Cache::kv_len(SequenceId id) const { return impl_->Find(id, "kv_len").kv_len; }
int64_t Cache::sealed_len(SequenceId id) const { return impl_->Find(id, "sealed_len").sealed_len(); }

SequenceId Cache::Fork(SequenceId id) {
  Sequence copy = impl_->FindIdle(id, "Fork");
  const SequenceId fork{impl_->next_id};
  const Sequence& seq = impl_->sequences.try_emplace(fork, std::move(copy)).first->second;
  ++impl_->next_id;
  const int64_t num_pages = static_cast<int64_t>(seq.pages.size());
  for (int64_t i = 0; i < num_pages; ++i) {
    const PageId page = seq.pages[static_cast<size_t>(i)];
    i < seq.num_sealed ? impl_->store.AddSealed(page) : impl_->store.AddF16(page);
  }
  impl_->table_entries += num_pages;
  impl_->UpdatePeak();
  return fork;
}

void Cache::RollBack(SequenceId id, int64_t tokens) {
  Sequence& seq = impl_->FindIdle(id, "RollBack");
  if (tokens < 0 || tokens > seq.kv_len - seq.sealed_len()) {
    Fail("cache: RollBack: ", tokens, " tokens of sequence ", static_cast<int64_t>(id), "; ",
         seq.kv_len - seq.sealed_len(), " of its ", seq.kv_len,
         " tokens are not sealed and can be rolled back. Truncate drops more, at a loss.");
  }
  seq.kv_len -= tokens;
  impl_->ResizePages(seq, PagesFor(seq.kv_len));
  impl_->TrimLastPage(seq);
}

Status Cache::Truncate(SequenceId id, int64_t kv_len) {
  Sequence& seq = impl_->FindIdle(id, "Truncate");
  PageStore& store = impl_->store;
  if (kv_len < 0 || kv_len > seq.kv_len) {
    Fail("cache: Truncate: sequence ", static_cast<int64_t>(id), " to ", kv_len, " tokens; it has ", seq.kv_len,
         ", so 0 to ", seq.kv_len, " are possible.");
  }
  const int64_t cut = kv_len % kPageTokens;
  const int64_t last_page = kv_len / kPageTokens;  // the page that is cut, if cut > 0
  if (cut == 0 || last_page >= seq.num_sealed) {
    seq.kv_len = kv_len;
    impl_->ResizePages(seq, PagesFor(kv_len));
    impl_->TrimLastPage(seq);
    return Status::kOk;
  }

  bool has_room = store.f16().num_free() > 0;
  for (size_t i = static_cast<size_t>(seq.num_sealed); i < seq.pages.size() && !has_room; ++i)
    has_room = store[seq.pages[i]].f16_refs == 1;
  if (!has_room) return Status::kOutOfPages;
  std::vector<float> scratch(static_cast<size_t>(cut * impl_->format.row_values));

  impl_->ResizePages(seq, last_page + 1);
  const PageId sealed = seq.pages.back();
  const PageId thawed = store.New();
  impl_->ThawPage(sealed, thawed, static_cast<int>(cut), scratch);
  impl_->UpdatePeak();
  seq.pages.back() = thawed;
  seq.num_sealed = last_page;
  seq.kv_len = kv_len;
  store.DropSealed(sealed);
  ++impl_->pages_thawed;
  return Status::kOk;
}

CacheStats Cache::Stats() const {
  const Impl& impl = *impl_;
  CacheStats s;
  s.num_sequences = static_cast<int64_t>(impl.sequences.size());
  for (const auto& [id, seq] : impl.sequences) s.num_tokens += seq.kv_len;
  s.sealed_pages = impl.store.sealed().num_slots();
  s.sealed_pages_used = impl.store.sealed().num_used();
  s.sealed_pages_peak = impl.store.sealed().peak_used();
  s.f16_pages = impl.store.f16().num_slots();
  s.f16_pages_used = impl.store.f16().num_used();
  s.f16_pages_peak = impl.store.f16().peak_used();
  for (const Page& page : impl.store.pages()) s.shared_pages += page.num_readers() > 1;
  s.sealed_bytes = impl.store.num_sealed() * impl.format.sealed_side_bytes;
  s.f16_side_bytes = impl.store.num_sealed() * impl.format.f16_side_bytes;
  s.window_bytes = impl.store.f16().committed_bytes();
  s.exact_bytes = impl.store.exact_bytes();
  s.table_bytes = impl.TableBytes();
  s.total_bytes = impl.TotalBytes();
  s.peak_bytes = impl.peak_bytes;
  s.pool_bytes = impl.plan.pool_bytes;
  s.pages_sealed = impl.pages_sealed;
  s.pages_thawed = impl.pages_thawed;
  s.pages_copied = impl.pages_copied;
  s.bits_per_value = impl.format.bits_per_value();
  const int64_t sealed_values =
      2 * kPageTokens * impl.format.row_values * impl.options.num_layers * impl.store.num_sealed();
  if (sealed_values > 0)
    s.bits_per_value += 8.0 * static_cast<double>(impl.store.chosen_bytes()) / static_cast<double>(sealed_values);
  return s;
}

}  // namespace kvrazor
