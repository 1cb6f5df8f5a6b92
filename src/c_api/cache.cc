#include "kvrazor/cache.h"

#include <span>
#include <string>
#include <utility>
#include <vector>

#include "src/c_api/guard.h"

using namespace kvrazor;
using namespace kvrazor::c_api;

struct kvrazor_cache {
  Cache cache;
};

namespace {

CacheOptions OptionsOf(const kvrazor_cache_options* options) {
  const kvrazor_cache_options& o = Required(options, "options");
  CacheOptions result;
  result.num_layers = o.num_layers;
  result.shape = {o.num_kv_heads, o.head_dim};
  result.recipe = ParseRecipe(&Required(o.recipe, "options.recipe"));
  result.max_tokens = o.max_tokens;
  result.max_sequences = o.max_sequences;
  result.max_new_tokens = o.max_new_tokens;
  result.sealed_pages = o.sealed_pages;
  result.f16_pages = o.f16_pages;
  result.query_stride = o.query_stride;
  return result;
}

void CheckCount(const void* pointer, int64_t num_seqs, const char* name) {
  constexpr int64_t kMost = int64_t{1} << 31;
  if (num_seqs < 0 || num_seqs > kMost)
    throw Error("kvrazor: num_seqs is " + std::to_string(num_seqs) + "; 0 to 2^31 sequences are possible.");
  if (num_seqs > 0) (void)Required(static_cast<const char*>(pointer), name);
}

std::vector<SequenceId> Handles(const int64_t* seqs, int64_t num_seqs) {
  CheckCount(seqs, num_seqs, "seqs");
  std::vector<SequenceId> ids;
  ids.reserve(static_cast<size_t>(num_seqs));
  for (int64_t i = 0; i < num_seqs; ++i) ids.push_back(SequenceId{seqs[i]});
  return ids;
}

Side SideOf(int side) {
  if (side != KVRAZOR_KEY && side != KVRAZOR_VALUE)
    throw Error("kvrazor: side is " + std::to_string(side) + "; KVRAZOR_KEY and KVRAZOR_VALUE are possible.");
  return side == KVRAZOR_KEY ? Side::kKey : Side::kValue;
}

int StatusOf(Status status, const char* op) {
  if (status == Status::kOk) return KVRAZOR_OK;
  SetLastError(
      (std::string("kvrazor: ") + op + ": out of pages; nothing was changed. Free a sequence and call again.").c_str());
  return KVRAZOR_OUT_OF_PAGES;
}

}  // namespace

void kvrazor_cache_options_init(kvrazor_cache_options* options) {
  if (options == nullptr) return;
  const CacheOptions defaults;
  *options = {};
  options->max_sequences = defaults.max_sequences;
  options->max_new_tokens = defaults.max_new_tokens;
  options->query_stride = defaults.query_stride;
}

int kvrazor_cache_plan_memory(const kvrazor_cache_options* options, kvrazor_cache_plan* plan) {
  return Guard([&] {
    const CachePlan p = PlanCache(OptionsOf(options));
    Required(plan, "plan") = {p.sealed_pages, p.f16_pages,    p.sealed_page_bytes, p.f16_page_bytes,
                              p.pool_bytes,   p.moment_bytes, p.exact_bytes};
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_create(const kvrazor_cache_options* options, kvrazor_cache** cache) {
  return Guard([&] {
    (void)Required(cache, "cache");
    *cache = new kvrazor_cache{Cache(OptionsOf(options))};
    return KVRAZOR_OK;
  });
}

void kvrazor_cache_destroy(kvrazor_cache* cache) { delete cache; }

int kvrazor_cache_open(kvrazor_cache* cache, int64_t* seq) {
  return Guard([&] {
    (void)Required(seq, "seq");
    *seq = static_cast<int64_t>(Required(cache, "cache").cache.Open());
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_free(kvrazor_cache* cache, int64_t seq) {
  return Guard([&] {
    Required(cache, "cache").cache.Free(SequenceId{seq});
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_fork(kvrazor_cache* cache, int64_t seq, int64_t* fork) {
  return Guard([&] {
    (void)Required(fork, "fork");
    *fork = static_cast<int64_t>(Required(cache, "cache").cache.Fork(SequenceId{seq}));
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_roll_back(kvrazor_cache* cache, int64_t seq, int64_t tokens) {
  return Guard([&] {
    Required(cache, "cache").cache.RollBack(SequenceId{seq}, tokens);
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_truncate(kvrazor_cache* cache, int64_t seq, int64_t kv_len) {
  return Guard([&] { return StatusOf(Required(cache, "cache").cache.Truncate(SequenceId{seq}, kv_len), "truncate"); });
}

int kvrazor_cache_length(const kvrazor_cache* cache, int64_t seq, int64_t* kv_len, int64_t* sealed_len) {
  return Guard([&] {
    const Cache& c = Required(cache, "cache").cache;
    const int64_t tokens = c.kv_len(SequenceId{seq}), sealed = c.sealed_len(SequenceId{seq});
    if (kv_len != nullptr) *kv_len = tokens;
    if (sealed_len != nullptr) *sealed_len = sealed;
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_begin(kvrazor_cache* cache, const int64_t* seqs, const int64_t* new_tokens, int64_t num_seqs) {
  return Guard([&] {
    CheckCount(seqs, num_seqs, "seqs");
    CheckCount(new_tokens, num_seqs, "new_tokens");
    std::vector<NewTokens> step;
    step.reserve(static_cast<size_t>(num_seqs));
    for (int64_t i = 0; i < num_seqs; ++i) step.push_back({SequenceId{seqs[i]}, new_tokens[i]});
    return StatusOf(Required(cache, "cache").cache.Begin(step), "begin");
  });
}

int kvrazor_cache_append(kvrazor_cache* cache, int layer, const int64_t* seqs, int64_t num_seqs,
                         const kvrazor_tensor* k, const kvrazor_tensor* v) {
  return Guard([&] {
    Required(cache, "cache").cache.Append(layer, Handles(seqs, num_seqs), View(k, "k"), View(v, "v"));
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_add_queries(kvrazor_cache* cache, int layer, const int64_t* seqs, int64_t num_seqs,
                              const kvrazor_tensor* q) {
  return Guard([&] {
    Required(cache, "cache").cache.AddQueries(layer, Handles(seqs, num_seqs), View(q, "q"));
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_attend(const kvrazor_cache* cache, int layer, const int64_t* seqs, int64_t num_seqs,
                         const kvrazor_tensor* q, const kvrazor_tensor* out, const kvrazor_attend_options* options,
                         kvrazor_threads* threads) {
  return Guard([&] {
    AttendOptions o;
    if (options != nullptr) {
      o = {options->softmax_scale, options->logit_softcap, options->mask, options->mask_stride,
           options->alibi_slopes,  options->sink_logits,   options->lse};
    }
    Required(cache, "cache")
        .cache.Attend(layer, Handles(seqs, num_seqs), View(q, "q"), MutableView(out, "out"), o, ExecutorOf(threads));
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_commit(kvrazor_cache* cache, const int64_t* seqs, int64_t num_seqs, kvrazor_threads* threads) {
  return Guard([&] {
    Required(cache, "cache").cache.Commit(Handles(seqs, num_seqs), ExecutorOf(threads));
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_cancel(kvrazor_cache* cache, const int64_t* seqs, int64_t num_seqs) {
  return Guard([&] {
    Required(cache, "cache").cache.Cancel(Handles(seqs, num_seqs));
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_read(const kvrazor_cache* cache, int64_t seq, int layer, int side, int64_t first, int64_t last,
                       float* out) {
  return Guard([&] {
    if (last > first) (void)Required(out, "out");
    Required(cache, "cache").cache.Read(SequenceId{seq}, layer, SideOf(side), first, last, out);
    return KVRAZOR_OK;
  });
}

int kvrazor_cache_get_stats(const kvrazor_cache* cache, kvrazor_cache_stats* stats) {
  return Guard([&] {
    const CacheStats s = Required(cache, "cache").cache.Stats();
    kvrazor_cache_stats& out = Required(stats, "stats");
    out = {};
    out.num_sequences = s.num_sequences;
    out.num_tokens = s.num_tokens;
    out.sealed_pages = s.sealed_pages;
    out.sealed_pages_used = s.sealed_pages_used;
    out.sealed_pages_peak = s.sealed_pages_peak;
    out.f16_pages = s.f16_pages;
    out.f16_pages_used = s.f16_pages_used;
    out.f16_pages_peak = s.f16_pages_peak;
    out.shared_pages = s.shared_pages;
    out.sealed_bytes = s.sealed_bytes;
    out.f16_side_bytes = s.f16_side_bytes;
    out.window_bytes = s.window_bytes;
    out.exact_bytes = s.exact_bytes;
    out.table_bytes = s.table_bytes;
    out.total_bytes = s.total_bytes;
    out.peak_bytes = s.peak_bytes;
    out.pool_bytes = s.pool_bytes;
    out.pages_sealed = s.pages_sealed;
    out.pages_thawed = s.pages_thawed;
    out.pages_copied = s.pages_copied;
    out.bits_per_value = s.bits_per_value;
    return KVRAZOR_OK;
  });
}
