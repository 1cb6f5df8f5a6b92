// The values of a cache: in by Append, read by Attend.
#include <algorithm>
#include <cmath>
#include <vector>

#include "src/cache/cache_impl.h"
#include "src/cache/message.h"
#include "src/cache/rows.h"

namespace kvrazor {
namespace {

/// Rows as attention takes them: the caller's own if they are f32, else converted.
QueryRows Queries(const TensorView& q, std::vector<float>& scratch) {
  if (q.dtype == Dtype::kF32) return {static_cast<const float*>(q.data), q.token_stride, q.head_stride};
  scratch.resize(static_cast<size_t>(q.num_tokens * q.num_heads * q.head_dim));
  RowsToF32(q, scratch.data());
  return {scratch.data(), int64_t{q.num_heads} * q.head_dim, q.head_dim};
}

}  // namespace

const LayerSlots& Cache::Impl::Layer(int layer, const char* op) const {
  if (layer < 0 || layer >= options.num_layers) {
    Fail("cache: ", op, ": layer ", layer, "; the cache has layers 0 to ", options.num_layers - 1, ".");
  }
  return format.layers[static_cast<size_t>(layer)];
}

void Cache::Impl::CheckView(const TensorView& view, const char* what, int64_t num_tokens, int num_heads,
                            const char* op) const {
  if (view.num_tokens != num_tokens || view.num_heads != num_heads || view.head_dim != format.shape.head_dim) {
    Fail("cache: ", op, ": ", what, " is [", view.num_tokens, ", ", view.num_heads, ", ", view.head_dim,
         "]; it must be [", num_tokens, ", ", num_heads, ", ", format.shape.head_dim,
         "] (new tokens of all sequences, heads, head_dim).");
  }
  if (view.dtype != Dtype::kF32 && view.dtype != Dtype::kF16 && view.dtype != Dtype::kBF16) {
    Fail("cache: ", op, ": ", what, " has the unknown dtype ", static_cast<int>(view.dtype),
         "; f32, f16 and bf16 are possible.");
  }
  if (view.data == nullptr && num_tokens > 0)
    Fail("cache: ", op, ": ", what, " is a null pointer; give ", num_tokens, " rows.");
}

int64_t Cache::Impl::CheckQueries(int layer, std::span<const SequenceId> ids, const TensorView& q,
                                  const char* op) const {
  Layer(layer, op);
  int64_t num_new = 0;
  for (const SequenceId id : ids) {
    const Sequence& seq = Find(id, op);
    if (!seq.in_step())
      Fail("cache: ", op, ": sequence ", static_cast<int64_t>(id), " is in no step; call Begin and Append first.");
    if (layer >= seq.next_layer) {
      Fail("cache: ", op, ": layer ", layer, " of sequence ", static_cast<int64_t>(id),
           " has no new rows yet; Append it first.");
    }
    num_new += seq.num_new;
  }
  const int num_kv_heads = format.shape.num_kv_heads;
  if (q.num_heads < num_kv_heads || q.num_heads % num_kv_heads != 0) {
    Fail("cache: ", op, ": q has ", q.num_heads, " heads; a multiple of the ", num_kv_heads, " kv heads is needed.");
  }
  CheckView(q, "q", num_new, q.num_heads, op);
  return num_new;
}

void Cache::Append(int layer, std::span<const SequenceId> ids, const TensorView& k, const TensorView& v) {
  Impl& impl = *impl_;
  impl.Layer(layer, "Append");
  const std::vector<Sequence*> seqs = impl.FindStep(ids, "Append");
  int64_t num_new = 0;
  for (size_t i = 0; i < seqs.size(); ++i) {
    if (seqs[i]->next_layer != layer) {
      Fail("cache: Append: layer ", layer, " of sequence ", static_cast<int64_t>(ids[i]), "; layers come in order and ",
           seqs[i]->next_layer < impl.options.num_layers ? "layer " + std::to_string(seqs[i]->next_layer) + " is next."
                                                         : "all have been appended; Commit the step.");
    }
    num_new += seqs[i]->num_new;
  }
  impl.CheckView(k, "k", num_new, impl.format.shape.num_kv_heads, "Append");
  impl.CheckView(v, "v", num_new, impl.format.shape.num_kv_heads, "Append");

  int64_t row = 0;  // of the views
  for (Sequence* seq : seqs) {
    for (int64_t done = 0; done < seq->num_new;) {
      const int64_t position = seq->kv_len + done;
      const int64_t in_page = position % kPageTokens;
      const int64_t count = std::min(seq->num_new - done, kPageTokens - in_page);
      const PageId page = seq->pages[static_cast<size_t>(position / kPageTokens)];
      const int64_t at = in_page * impl.format.row_values;
      for (const Side side : kSides) impl.store.TouchF16(page, layer, side, in_page, count);
      RowsToF16(k, row, row + count, impl.store.F16Rows(page, layer, Side::kKey) + at);
      RowsToF16(v, row, row + count, impl.store.F16Rows(page, layer, Side::kValue) + at);
      row += count;
      done += count;
    }
    seq->next_layer = layer + 1;
  }
  impl.UpdatePeak();
}

void Cache::Attend(int layer, std::span<const SequenceId> ids, const TensorView& q, const MutableTensorView& out,
                   const AttendOptions& options, Executor& executor) const {
  const Impl& impl = *impl_;
  const int64_t num_rows = impl.CheckQueries(layer, ids, q, "Attend");
  impl.CheckView({out.data, out.dtype, out.num_tokens, out.num_heads, out.head_dim, out.token_stride, out.head_stride},
                 "out", num_rows, q.num_heads, "Attend");
  const int head_dim = impl.format.shape.head_dim;

  std::vector<float> q_scratch, out_scratch;
  const QueryRows queries = Queries(q, q_scratch);
  OutputRows outputs = {static_cast<float*>(out.data), out.token_stride, out.head_stride};
  if (out.dtype != Dtype::kF32) {
    out_scratch.resize(static_cast<size_t>(num_rows * q.num_heads * head_dim));
    outputs = {out_scratch.data(), int64_t{q.num_heads} * head_dim, head_dim};
  }
  std::vector<int64_t> first_row(ids.size());
  for (size_t i = 1; i < ids.size(); ++i) first_row[i] = first_row[i - 1] + impl.Find(ids[i - 1], "Attend").num_new;

  auto attend = [&](size_t i, Executor& inner) {
    const Sequence& seq = impl.Find(ids[i], "Attend");
    const int64_t num_keys = seq.kv_len + seq.num_new;
    std::vector<AttendPage> pages(seq.pages.size());
    for (size_t p = 0; p < pages.size(); ++p) {
      const bool sealed = static_cast<int64_t>(p) < seq.num_sealed;
      pages[p].k = impl.store.View(seq.pages[p], layer, Side::kKey, sealed);
      pages[p].v = impl.store.View(seq.pages[p], layer, Side::kValue, sealed);
      pages[p].first_key = static_cast<int64_t>(p) * kPageTokens;
      pages[p].num_tokens = static_cast<int>(std::min<int64_t>(kPageTokens, num_keys - pages[p].first_key));
    }
    const int64_t row = first_row[i];
    AttendArgs args;
    args.format = &impl.format.layers[static_cast<size_t>(layer)].format;
    args.pages = pages;
    args.num_qo_heads = q.num_heads;
    args.qo_len = static_cast<int>(seq.num_new);
    args.softmax_scale =
        options.softmax_scale != 0 ? options.softmax_scale : 1.0f / std::sqrt(static_cast<float>(head_dim));
    args.logit_softcap = options.logit_softcap;
    args.q = {queries.data + row * queries.token_stride, queries.token_stride, queries.head_stride};
    args.out = {outputs.data + row * outputs.token_stride, outputs.token_stride, outputs.head_stride};
    args.mask = options.mask != nullptr ? options.mask + row * options.mask_stride : nullptr;
    args.mask_stride = options.mask_stride;
    args.causal_base = seq.kv_len;
    args.alibi_slopes = options.alibi_slopes;
    args.sink_logits = options.sink_logits;
    args.lse = options.lse != nullptr ? options.lse + row * q.num_heads : nullptr;
    impl.backend.Attend(args, inner);
  };
  // Many sequences: one a task, no splitting inside. Few: each is split over all threads.
  constexpr size_t kSequencesPerThread = 4;
  if (executor.num_threads() > 1 && ids.size() >= kSequencesPerThread * static_cast<size_t>(executor.num_threads())) {
    executor.Run(static_cast<int64_t>(ids.size()),
                 [&](int64_t i, int) { attend(static_cast<size_t>(i), SerialExecutor()); });
  } else {
    for (size_t i = 0; i < ids.size(); ++i) attend(i, executor);
  }
  if (out.dtype != Dtype::kF32) RowsFromF32(out_scratch.data(), out);
}

void Cache::AddQueries(int layer, std::span<const SequenceId> ids, const TensorView& q) {
  Impl& impl = *impl_;
  impl.CheckQueries(layer, ids, q, "AddQueries");
  if (!impl.Layer(layer, "AddQueries").wants_queries()) return;
  std::vector<float> scratch;
  const QueryRows queries = Queries(q, scratch);
  const int64_t stride = impl.options.query_stride;
  int64_t row = 0;
  for (const SequenceId id : ids) {
    const Sequence& seq = impl.Find(id, "AddQueries");
    const int64_t first =
        (stride - seq.kv_len % stride) % stride;  // the first position that is a multiple of the stride
    if (first < seq.num_new) {
      const QueryRows rows = {queries.data + (row + first) * queries.token_stride, queries.token_stride,
                              queries.head_stride};
      impl.backend.AddQueries(impl.moments[static_cast<size_t>(layer)], rows, static_cast<int>(seq.num_new - first),
                              q.num_heads, static_cast<int>(stride));
    }
    row += seq.num_new;
  }
}

void Cache::Read(SequenceId id, int layer, Side side, int64_t first, int64_t last, float* out) const {
  const Impl& impl = *impl_;
  const PageLayout& layout = impl.Layer(layer, "Read").layout(side);
  const Sequence& seq = impl.Find(id, "Read");
  if (first < 0 || last < first || last > seq.kv_len) {
    Fail("cache: Read: tokens ", first, " to ", last, " of sequence ", static_cast<int64_t>(id),
         "; it has tokens 0 to ", seq.kv_len, ".");
  }
  for (int64_t t = first; t < last;) {
    const int64_t page = t / kPageTokens;
    const int from = static_cast<int>(t % kPageTokens);
    const int to = static_cast<int>(std::min<int64_t>(kPageTokens, last - page * kPageTokens));
    const PageSide view = impl.store.View(seq.pages[static_cast<size_t>(page)], layer, side, page < seq.num_sealed);
    impl.backend.Dequantize(layout, view, from, to, out + (t - first) * impl.format.row_values);
    t += to - from;
  }
}

std::span<const std::byte> Cache::SealedPage(SequenceId id, int layer, Side side, int64_t page) const {
  const Impl& impl = *impl_;
  const LayerSlots& slots = impl.Layer(layer, "SealedPage");
  const Sequence& seq = impl.Find(id, "SealedPage");
  if (page < 0 || page >= PagesFor(seq.kv_len)) {
    Fail("cache: SealedPage: page ", page, " of sequence ", static_cast<int64_t>(id), "; it has ", PagesFor(seq.kv_len),
         " pages.");
  }
  if (page >= seq.num_sealed || !slots.is_sealed(side)) return {};
  return {impl.store.SealedBytes(seq.pages[static_cast<size_t>(page)], layer, side),
          static_cast<size_t>(slots.layout(side).page_bytes)};
}

}  // namespace kvrazor
