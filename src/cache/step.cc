// A step: pages for the new tokens, and sealing when it ends. Everything that Commit will take is taken by Begin, so that a
// step that has begun cannot run out of pages.
#include <algorithm>
#include <utility>

#include "src/cache/cache_impl.h"
#include "src/cache/message.h"

namespace kvrazor {

/// Counts what Take will take. Marks pages, so that several sequences of one step that share a page count it alike.
Cache::Impl::Need Cache::Impl::Plan(Sequence& seq, int64_t count) {
  Need need;
  const int64_t total = seq.kv_len + count;
  const int64_t num_pages = static_cast<int64_t>(seq.pages.size());
  need.f16 = PagesFor(total) - num_pages;
  const bool writes_last = seq.kv_len % kPageTokens != 0;
  if (writes_last) {
    Page& last = store[seq.pages.back()];
    if (last.f16_refs - last.planned_drops > 1) {
      ++need.f16;
      ++last.planned_drops;
    }
  }
  const int64_t untouched = num_pages - writes_last;  // pages before keep their contents
  for (int64_t i = seq.num_sealed; i < SealedPagesAt(total); ++i) {
    if (i < untouched) {
      Page& page = store[seq.pages[static_cast<size_t>(i)]];
      if (page.sealed_slot >= 0 || std::exchange(page.planned_seal, true)) continue;
    }
    ++need.sealed;
  }
  return need;
}

void Cache::Impl::ClearPlan(const Sequence& seq, int64_t count) {
  if (!seq.pages.empty()) store[seq.pages.back()].planned_drops = 0;
  const int64_t end = std::min<int64_t>(SealedPagesAt(seq.kv_len + count), static_cast<int64_t>(seq.pages.size()));
  for (int64_t i = seq.num_sealed; i < end; ++i) store[seq.pages[static_cast<size_t>(i)]].planned_seal = false;
}

void Cache::Impl::Take(Sequence& seq, int64_t count) {
  const int64_t total = seq.kv_len + count;
  const int last_tokens = static_cast<int>(seq.kv_len % kPageTokens);
  if (last_tokens != 0) {
    PageId& last = seq.pages.back();
    if (store[last].f16_refs > 1) {
      last = store.CopyOnWrite(last, last_tokens);
      ++pages_copied;
    } else if (store[last].sealed_refs > 0) {
      last = store.Detach(last);
    }
  }
  while (static_cast<int64_t>(seq.pages.size()) < PagesFor(total)) {
    seq.pages.push_back(store.New());
    ++table_entries;
  }
  const int64_t end = SealedPagesAt(total);
  for (int64_t i = seq.num_sealed; i < end; ++i) store.Reserve(seq.pages[static_cast<size_t>(i)]);
  seq.num_sealing = std::max<int64_t>(0, end - seq.num_sealed);
  seq.num_new = count;
  seq.next_layer = 0;
}

Status Cache::Begin(std::span<const NewTokens> step) {
  Impl& impl = *impl_;
  const int64_t most = impl.store.f16().num_slots() * kPageTokens;
  const uint64_t mark = impl.next_mark++;
  for (const NewTokens& part : step) {
    Sequence& seq = impl.FindIdle(part.seq, "Begin");
    if (part.count < 1 || part.count > most) {
      Fail("cache: Begin: ", part.count, " new tokens for sequence ", static_cast<int64_t>(part.seq), "; 1 to ", most,
           " fit into the 16-bit pages. Cut a long prompt into several steps.");
    }
    if (std::exchange(seq.mark, mark) == mark)
      Fail("cache: Begin: sequence ", static_cast<int64_t>(part.seq), " is given twice; give each once.");
  }

  Impl::Need need;
  for (const NewTokens& part : step) {
    const Impl::Need more = impl.Plan(impl.Find(part.seq, "Begin"), part.count);
    need.f16 += more.f16;
    need.sealed += more.sealed;
  }
  for (const NewTokens& part : step) impl.ClearPlan(impl.Find(part.seq, "Begin"), part.count);
  if (need.f16 > impl.store.f16().num_free() || need.sealed > impl.store.sealed().num_free())
    return Status::kOutOfPages;

  // What can throw comes first.
  for (const NewTokens& part : step) {
    Sequence& seq = impl.Find(part.seq, "Begin");
    const size_t size = static_cast<size_t>(PagesFor(seq.kv_len + part.count));
    if (size > seq.pages.capacity()) seq.pages.reserve(std::max(size, 2 * seq.pages.capacity()));
  }
  for (const NewTokens& part : step) impl.Take(impl.Find(part.seq, "Begin"), part.count);
  impl.UpdatePeak();
  return Status::kOk;
}

void Cache::Impl::SealSide(PageId id, int layer, Side side) {
  const LayerSlots& slots = format.layers[static_cast<size_t>(layer)];
  const f16_bits* rows = store.F16Rows(id, layer, side);
  if (!slots.is_sealed(side)) {
    std::copy_n(rows, kPageTokens * format.row_values, reinterpret_cast<f16_bits*>(store.SealedBytes(id, layer, side)));
    return;
  }
  const SecondMoment& moment = moments[static_cast<size_t>(layer)];
  const TokenMask exact = store.ExactTokens(id, layer, side);
  backend.Seal(slots.layout(side), rows, exact, moment.empty() ? nullptr : &moment, store.SealedBytes(id, layer, side));
  if (exact.Any()) GatherRows(rows, format.row_values, exact, store.ExactRows(id, layer, side));
}

/// Pages that the steps of `seqs` reserved, each behind those before it in its sequence. One that a fork sealed before is
/// left out.
std::vector<Cache::Impl::ToSeal> Cache::Impl::PagesToSeal(std::span<Sequence* const> seqs) {
  std::vector<ToSeal> pages;
  int64_t most = 0;
  for (const Sequence* seq : seqs) most += seq->num_sealing;
  pages.reserve(static_cast<size_t>(most));
  for (const Sequence* seq : seqs) {
    for (int64_t i = seq->num_sealed; i < seq->num_sealed + seq->num_sealing; ++i) {
      const PageId id = seq->pages[static_cast<size_t>(i)];
      if (!store[id].is_sealed && !std::exchange(store[id].planned_seal, true)) pages.push_back({id, seq, i});
    }
  }
  for (const ToSeal& page : pages) store[page.id].planned_seal = false;
  return pages;
}

/// Only pages with chosen tokens change the state. Those before have been sealed, or have been decided on just now; two
/// sequences that share a page share all pages before it.
ExactTrace Cache::Impl::TraceBefore(const ToSeal& page, int layer) const {
  for (int64_t i = page.index; i-- > 0;) {
    const PageExact* exact = store[page.seq->pages[static_cast<size_t>(i)]].exact.get();
    if (exact == nullptr) continue;
    const ExactTrace& trace = exact->layers[static_cast<size_t>(layer)].trace;
    if (trace.pool_size > 0) return trace;
  }
  return {};
}

void Cache::Impl::ChooseExactTokens(std::span<const ToSeal> pages, Executor& executor) {
  for (const ToSeal& page : pages) {
    store.SetExact(page.id, nullptr);
    const bool has_sinks = format.keeps_sinks && page.index == 0;
    if (!has_sinks && !format.chooses_exact) continue;
    auto exact = std::make_unique<PageExact>();
    exact->layers.resize(format.layers.size());
    std::vector<int> num_chosen(format.layers.size());
    executor.Run(options.num_layers, [&](int64_t layer, int) {
      const LayerSlots& slots = format.layers[static_cast<size_t>(layer)];
      PageExact::Layer& to = exact->layers[static_cast<size_t>(layer)];
      TokenMask tokens = has_sinks ? SinkTokens(slots.exact) : TokenMask{};
      if (slots.exact.chooses()) {
        to.trace = TraceBefore(page, static_cast<int>(layer));
        const TokenMask chosen = ChooseExact(slots.exact, store.F16Rows(page.id, static_cast<int>(layer), Side::kKey),
                                             format.row_values, tokens, to.trace);
        num_chosen[static_cast<size_t>(layer)] = chosen.Count();
        tokens |= chosen;
      }
      for (const Side side : kSides) {
        if (slots.is_sealed(side)) to.tokens[static_cast<size_t>(side)] = tokens;
      }
    });
    for (size_t layer = 0; layer < exact->layers.size(); ++layer) {
      for (const Side side : kSides) {
        PageExact::Layer& to = exact->layers[layer];
        to.rows_at[static_cast<size_t>(side)] = exact->num_values;
        exact->num_values += to.tokens[static_cast<size_t>(side)].Count() * format.row_values;
        if (format.layers[layer].is_sealed(side)) exact->num_chosen_values += num_chosen[layer] * format.row_values;
      }
    }
    if (exact->num_values == 0) continue;
    exact->rows = std::make_unique<f16_bits[]>(static_cast<size_t>(exact->num_values));
    store.SetExact(page.id, std::move(exact));
  }
}

/// Writes the sealed bytes of all pages that the steps of `seqs` reserved.
void Cache::Impl::SealPages(std::span<Sequence* const> seqs, Executor& executor) {
  const std::vector<ToSeal> pages = PagesToSeal(seqs);
  if (format.keeps_sinks || format.chooses_exact) ChooseExactTokens(pages, executor);

  // A few sides at a time: their 16-bit rows go back to the system before the next sealed bytes take memory.
  const int64_t tasks_per_page = int64_t{options.num_layers} * 2;
  const int64_t num_tasks = static_cast<int64_t>(pages.size()) * tasks_per_page;
  const int64_t at_once = int64_t{2} * executor.num_threads();
  const auto for_task = [&](int64_t task, const auto& fn) {
    const ToSeal& page = pages[static_cast<size_t>(task / tasks_per_page)];
    const int64_t side = task % tasks_per_page;
    fn(page, static_cast<int>(side / 2), kSides[static_cast<size_t>(side % 2)]);
  };
  for (int64_t first = 0; first < num_tasks; first += at_once) {
    const int64_t last = std::min(num_tasks, first + at_once);
    for (int64_t task = first; task < last; ++task) {
      for_task(task, [&](const ToSeal& page, int layer, Side side) {
        sealing_bytes += store.TouchSealed(page.id, layer, side);
      });
    }
    UpdatePeak();
    executor.Run(last - first, [&](int64_t i, int) {
      for_task(first + i, [&](const ToSeal& page, int layer, Side side) { SealSide(page.id, layer, side); });
    });
    for (int64_t task = first; task < last; ++task) {
      for_task(task, [&](const ToSeal& page, int layer, Side side) { store.ReleaseF16(page.id, layer, side, 0); });
    }
  }
  sealing_bytes = 0;
  for (const ToSeal& page : pages) store.MarkSealed(page.id);
  pages_sealed += static_cast<int64_t>(pages.size());
}

void Cache::Commit(std::span<const SequenceId> ids, Executor& executor) {
  Impl& impl = *impl_;
  const std::vector<Sequence*> seqs = impl.FindStep(ids, "Commit");
  for (size_t i = 0; i < seqs.size(); ++i) {
    if (seqs[i]->next_layer == impl.options.num_layers) continue;
    Fail("cache: Commit: sequence ", static_cast<int64_t>(ids[i]), " has layers below ", seqs[i]->next_layer, " of ",
         impl.options.num_layers, " appended; append the others, or Cancel the step.");
  }
  impl.SealPages(seqs, executor);
  for (Sequence* seq : seqs) {
    for (int64_t i = 0; i < seq->num_sealing; ++i)
      impl.store.SwitchToSealed(seq->pages[static_cast<size_t>(seq->num_sealed + i)]);
    seq->num_sealed += std::exchange(seq->num_sealing, 0);
    seq->kv_len += std::exchange(seq->num_new, 0);
  }
}

void Cache::Impl::CancelStep(Sequence& seq) {
  for (int64_t i = 0; i < seq.num_sealing; ++i) store.DropReserved(seq.pages[static_cast<size_t>(seq.num_sealed + i)]);
  seq.num_sealing = 0;
  seq.num_new = 0;
  ResizePages(seq, PagesFor(seq.kv_len));
  TrimLastPage(seq);
}

void Cache::Cancel(std::span<const SequenceId> ids) {
  for (Sequence* seq : impl_->FindStep(ids, "Cancel")) impl_->CancelStep(*seq);
}

}  // namespace kvrazor
