// The C API under any order of calls with any arguments that point to memory: every call returns a status, errors have a reason,
// counts stay consistent, and what a C caller could not know to be wrong never crashes. A byte picks the call, the bytes behind
// it the arguments.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <string>
#include <vector>

#include "kvrazor/c_api.h"
#include "tests/fuzz/seeds.h"

using kvrazor::fuzz::Crash;

// Absurd sizes must come back as errors, here too.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
extern "C" const char* __tsan_default_options() { return "allocator_may_return_null=1"; }

namespace {

class Input {
 public:
  Input(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  bool empty() const { return left_ == 0; }
  uint8_t Byte() {
    if (left_ == 0) return 0;
    --left_;
    return *data_++;
  }
  bool OneIn(int n) { return Byte() % n == 0; }
  /// Small and odd numbers, edges, and whatever eight bytes say.
  int64_t Number() {
    const uint8_t kind = Byte();
    if (kind < 160) return kind % 8;
    if (kind < 200) return Byte();
    if (kind < 230) return int64_t{128} * (Byte() % 5) + Byte() % 3 - 1;
    if (kind < 240) return -1;
    uint64_t x = 0;
    for (int i = 0; i < 8; ++i) x = x << 8 | Byte();
    return static_cast<int64_t>(x >> kind % 64);
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

struct Sequence {
  int64_t id;
  int64_t num_new = 0;  // of the step that it is in
};

class Session {
 public:
  explicit Session(Input& in) : in_(in), threads_(nullptr) {
    kvrazor_cache_options o;
    kvrazor_cache_options_init(&o);
    const char* recipes[] = {
        "f16",  "ott:exact-from=0", "oscar", "razor-2", "razor-2;0=f16", "oscar:sinks=128", "kivi:residual=256",
        "none", "razor-2;5=f16",    nullptr};
    o.recipe = recipes[in.Byte() % std::size(recipes)];
    o.num_layers = 1 + in.Byte() % 2;
    o.num_kv_heads = 1 + in.Byte() % 2;
    o.head_dim = in.OneIn(9) ? static_cast<int32_t>(in.Number()) : 32;
    o.max_tokens = in.OneIn(9) ? in.Number() : 600;
    o.f16_pages = in.OneIn(5) ? in.Number() : 6;
    o.sealed_pages = in.OneIn(5) ? in.Number() : 4;
    if (in.OneIn(20)) o.num_layers = static_cast<int32_t>(in.Number());
    if (in.OneIn(20)) o.num_kv_heads = static_cast<int32_t>(in.Number());
    if (in.OneIn(20)) o.query_stride = static_cast<int32_t>(in.Number());
    kvrazor_cache_plan plan;
    const int planned = kvrazor_cache_plan_memory(&o, &plan);
    // What could be had, but not on every machine that runs this.
    if (planned == KVRAZOR_OK && plan.pool_bytes + plan.moment_bytes > (int64_t{1} << 28) &&
        plan.pool_bytes < (int64_t{1} << 44))
      return;
    if (Check(kvrazor_cache_create(&o, &cache_)) == KVRAZOR_OK && planned != KVRAZOR_OK)
      Crash("made a cache that cannot be planned");
    options_ = o;
  }

  ~Session() {
    if (cache_ == nullptr) return;
    for (const Sequence& s : sequences_) {
      if (kvrazor_cache_free(cache_, s.id) != KVRAZOR_OK) Crash("an open sequence could not be freed");
    }
    kvrazor_cache_stats stats;
    kvrazor_cache_get_stats(cache_, &stats);
    if (stats.f16_pages_used != 0 || stats.sealed_pages_used != 0 || stats.exact_bytes != 0 || stats.num_sequences != 0)
      Crash("pages are left behind");
    kvrazor_cache_destroy(cache_);
    kvrazor_threads_destroy(threads_);
  }

  void Run() {
    while (cache_ != nullptr && !in_.empty()) {
      Call();
      CheckStats();
    }
  }

 private:
  int Check(int status) {
    if (status != KVRAZOR_OK && status != KVRAZOR_OUT_OF_PAGES && status != KVRAZOR_ERROR &&
        status != KVRAZOR_OUT_OF_MEMORY)
      Crash("no such status");
    if (status != KVRAZOR_OK && std::strlen(kvrazor_last_error()) == 0) Crash("an error without a reason");
    return status;
  }

  void CheckStats() {
    kvrazor_cache_stats s;
    if (kvrazor_cache_get_stats(cache_, &s) != KVRAZOR_OK) Crash("no statistics");
    const bool ok =
        s.f16_pages_used >= 0 && s.f16_pages_used <= s.f16_pages && s.sealed_pages_used >= 0 &&
        s.sealed_pages_used <= s.sealed_pages && s.f16_pages_peak >= s.f16_pages_used &&
        s.sealed_pages_peak >= s.sealed_pages_used && s.peak_bytes >= s.total_bytes &&
        s.total_bytes == s.sealed_bytes + s.f16_side_bytes + s.window_bytes + s.exact_bytes + s.table_bytes &&
        s.num_sequences == static_cast<int64_t>(sequences_.size());
    if (!ok) Crash("statistics contradict each other");
  }

  Sequence* Pick() { return sequences_.empty() ? nullptr : &sequences_[in_.Byte() % sequences_.size()]; }
  int64_t PickId() {
    const Sequence* s = in_.OneIn(16) ? nullptr : Pick();
    return s != nullptr ? s->id : in_.Number();
  }

  std::vector<int64_t> PickIds() {
    std::vector<int64_t> ids;
    for (int i = in_.Byte() % 4; i >= 0; --i) ids.push_back(PickId());
    return ids;
  }

  /// Rows for the new tokens of the sequences; now and then of another shape or without memory, which must be noticed.
  kvrazor_tensor Rows(const std::vector<int64_t>& ids, int num_heads, std::vector<float>& memory) {
    int64_t tokens = 0;
    for (const int64_t id : ids) {
      for (const Sequence& s : sequences_) tokens += s.id == id ? s.num_new : 0;
    }
    if (in_.OneIn(16)) tokens = in_.Number();
    const int64_t values = std::clamp<int64_t>(tokens, 0, 4096) * num_heads * options_.head_dim;
    memory.assign(static_cast<size_t>(values), static_cast<float>(in_.Byte()) / 16);
    const bool has_nan = in_.OneIn(40);
    for (size_t i = 0; i < memory.size(); i += 7) memory[i] = has_nan ? std::nanf("") : static_cast<float>(i % 13);
    kvrazor_tensor t = {memory.data(), KVRAZOR_F32, num_heads, options_.head_dim, tokens, 0, 0};
    if (in_.OneIn(16)) t.dtype = static_cast<int32_t>(in_.Number());
    if (in_.OneIn(32)) t.data = nullptr;
    if (in_.OneIn(32)) t.num_heads = static_cast<int32_t>(in_.Number() % 3);  // fewer than the memory holds
    return t;
  }

  void Forget(int64_t id) {
    std::erase_if(sequences_, [&](const Sequence& s) { return s.id == id; });
  }
  void SetNew(const std::vector<int64_t>& ids, const std::vector<int64_t>* counts) {
    for (Sequence& s : sequences_) {
      for (size_t i = 0; i < ids.size(); ++i) {
        if (s.id == ids[i]) s.num_new = counts != nullptr ? (*counts)[i] : 0;
      }
    }
  }

  void Call() {
    const int layer = in_.OneIn(16) ? static_cast<int>(in_.Number()) : in_.Byte() % options_.num_layers;
    int64_t id = 0;
    std::vector<float> a, b;
    switch (in_.Byte() % 16) {
      case 0:
        if (sequences_.size() < 8 && Check(kvrazor_cache_open(cache_, &id)) == KVRAZOR_OK) sequences_.push_back({id});
        return;
      case 1:
        id = PickId();
        if (Check(kvrazor_cache_free(cache_, id)) == KVRAZOR_OK) Forget(id);
        return;
      case 2: {
        int64_t fork = -1;
        if (sequences_.size() < 8 && Check(kvrazor_cache_fork(cache_, PickId(), &fork)) == KVRAZOR_OK)
          sequences_.push_back({fork});
        return;
      }
      case 3:
        id = PickId();
        Check(kvrazor_cache_roll_back(cache_, id, in_.Number()));
        return;
      case 4:
        id = PickId();
        Check(kvrazor_cache_truncate(cache_, id, in_.Number()));
        return;
      case 5:
      case 6:
      case 7: {
        const std::vector<int64_t> ids = PickIds();
        std::vector<int64_t> counts;
        for (size_t i = 0; i < ids.size(); ++i) counts.push_back(in_.Number());
        if (Check(kvrazor_cache_begin(cache_, ids.data(), counts.data(), static_cast<int64_t>(ids.size()))) ==
            KVRAZOR_OK)
          SetNew(ids, &counts);
        return;
      }
      case 8:
      case 9: {
        const std::vector<int64_t> ids = PickIds();
        const kvrazor_tensor k = Rows(ids, options_.num_kv_heads, a), v = Rows(ids, options_.num_kv_heads, b);
        Check(kvrazor_cache_append(cache_, layer, ids.data(), static_cast<int64_t>(ids.size()), &k, &v));
        return;
      }
      case 10: {
        const std::vector<int64_t> ids = PickIds();
        const kvrazor_tensor q = Rows(ids, options_.num_kv_heads * 2, a), out = Rows(ids, options_.num_kv_heads * 2, b);
        kvrazor_attend_options o = {};
        o.softmax_scale = in_.OneIn(8) ? INFINITY : 0;
        Check(kvrazor_cache_attend(cache_, layer, ids.data(), static_cast<int64_t>(ids.size()), &q, &out,
                                   in_.OneIn(2) ? &o : nullptr, nullptr));
        return;
      }
      case 11: {
        const std::vector<int64_t> ids = PickIds();
        const kvrazor_tensor q = Rows(ids, options_.num_kv_heads * 2, a);
        Check(kvrazor_cache_add_queries(cache_, layer, ids.data(), static_cast<int64_t>(ids.size()), &q));
        return;
      }
      case 12:
      case 13: return Complete();
      case 14: {
        const std::vector<int64_t> ids = PickIds();
        if (Check(kvrazor_cache_cancel(cache_, ids.data(), static_cast<int64_t>(ids.size()))) == KVRAZOR_OK)
          SetNew(ids, nullptr);
        return;
      }
      default: {
        id = PickId();
        int64_t kv_len = 0, sealed_len = 0;
        if (Check(kvrazor_cache_length(cache_, id, &kv_len, &sealed_len)) != KVRAZOR_OK) return;
        if (sealed_len > kv_len || sealed_len % KVRAZOR_PAGE_TOKENS != 0) Crash("impossible lengths");
        a.resize(static_cast<size_t>(kv_len * options_.num_kv_heads * options_.head_dim) + 1);
        if (Check(kvrazor_cache_read(cache_, id, layer, in_.Byte() % 2, 0, kv_len, a.data())) == KVRAZOR_OK &&
            (layer < 0 || layer >= options_.num_layers)) {
          Crash("read a layer that is not there");
        }
      }
    }
  }

  /// The layers that are missing from a step, then Commit.
  void Complete() {
    Sequence* s = Pick();
    if (s == nullptr || s->num_new == 0) return;
    std::vector<float> a, b;
    const std::vector<int64_t> ids = {s->id};
    for (int layer = 0; layer < options_.num_layers; ++layer) {
      const kvrazor_tensor k = Rows(ids, options_.num_kv_heads, a), v = Rows(ids, options_.num_kv_heads, b);
      Check(kvrazor_cache_append(cache_, layer, ids.data(), 1, &k, &v));
    }
    if (Check(kvrazor_cache_commit(cache_, ids.data(), 1, threads_)) == KVRAZOR_OK) s->num_new = 0;
  }

  Input& in_;
  kvrazor_cache* cache_ = nullptr;
  kvrazor_threads* threads_;
  kvrazor_cache_options options_ = {};
  std::vector<Sequence> sequences_;
};

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Input in(data, size);
  Session(in).Run();
  return 0;
}

std::vector<std::string> kvrazor::fuzz::Seeds() {
  // Each recipe; open, begin of many tokens, complete, several times, then a fork, a truncation and reads.
  std::vector<std::string> seeds;
  for (int recipe = 0; recipe < 7; ++recipe) {
    std::string s = {static_cast<char>(recipe), 0, 0, 1, 1, 1, 1, 1, 1, 1};
    auto call = [&](int which, std::initializer_list<int> arguments) {
      s += {1, 0, static_cast<char>(which)};
      for (const int x : arguments) s += static_cast<char>(x);
    };
    call(0, {});
    for (int step = 0; step < 4; ++step) {
      call(5, {0, 1, 0, 205, 1, 2});  // one sequence, 128 * 1 + 1 tokens
      call(12, {0});
      s += std::string(12, 1);  // plain rows
    }
    call(2, {1, 0});
    call(4, {1, 0, 165, 77});
    call(15, {1, 0, 0});
    call(3, {1, 1, 3});
    seeds.push_back(s);
  }
  return seeds;
}
