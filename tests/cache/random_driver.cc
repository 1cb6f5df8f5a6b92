#include "tests/cache/random_driver.h"

#include <algorithm>
#include <limits>
#include <random>
#include <sstream>
#include <stdexcept>

namespace kvrazor::test {
namespace {

uint16_t BF16FromExactF32(float x) { return static_cast<uint16_t>(std::bit_cast<uint32_t>(x) >> 16); }

/// Rows in one of the layouts and types that a caller may have, guard values in between.
struct CallerRows {
  std::vector<float> f32;
  std::vector<uint16_t> u16;
  TensorView view;

  CallerRows(const std::vector<f16_bits>& rows, int64_t num_tokens, int num_heads, int head_dim, uint64_t choice) {
    const Dtype dtype = Dtype{static_cast<int>(choice % 3)};
    const bool head_major = (choice / 3) % 2 != 0;
    const int64_t gap = static_cast<int64_t>((choice / 6) % 3) * 8;
    const int64_t head_stride = head_major ? (head_dim + gap) * num_tokens : head_dim + gap;
    const int64_t token_stride = head_major ? head_dim + gap : (head_dim + gap) * num_heads;
    const size_t size = static_cast<size_t>(num_tokens * num_heads * (head_dim + gap));
    if (dtype == Dtype::kF32) {
      f32.assign(size, std::numeric_limits<float>::quiet_NaN());
    } else {
      u16.assign(size, 0x7fff);
    }
    for (int64_t t = 0; t < num_tokens; ++t) {
      for (int h = 0; h < num_heads; ++h) {
        for (int c = 0; c < head_dim; ++c) {
          const f16_bits x = rows[static_cast<size_t>((t * num_heads + h) * head_dim + c)];
          const size_t at = static_cast<size_t>(t * token_stride + h * head_stride + c);
          if (dtype == Dtype::kF32) f32[at] = F32FromF16(x);
          if (dtype == Dtype::kF16) u16[at] = x;
          if (dtype == Dtype::kBF16) u16[at] = BF16FromExactF32(F32FromF16(x));
        }
      }
    }
    const void* data = dtype == Dtype::kF32 ? static_cast<const void*>(f32.data()) : u16.data();
    view = TensorView(data, dtype, num_tokens, num_heads, head_dim, token_stride, head_stride);
  }
};

class Driver {
 public:
  explicit Driver(const DriverOptions& o)
      : o_(o),
        backend_(*o.cache.backend),
        cache_(o.cache),
        plan_(PlanCache(o.cache)),
        model_(o.cache, plan_.sealed_pages, plan_.f16_pages),
        random_(o.seed) {}

  DriverCounts Run() {
    while (counts_.operations < o_.num_operations) {
      Step();
      CheckStats();
      CheckSomeTokens();
      if (counts_.operations / o_.full_check_every != last_full_check_) {
        last_full_check_ = counts_.operations / o_.full_check_every;
        CheckEverything();
      }
    }
    CheckEverything();
    while (!model_.sequences.empty()) FreeOne(model_.sequences.begin()->first);
    CheckStats();
    counts_.stats = cache_.Stats();
    if (counts_.stats.f16_pages_used != 0 || counts_.stats.sealed_pages_used != 0 || counts_.stats.exact_bytes != 0)
      Fail("pages are left when all sequences are free");
    return counts_;
  }

 private:
  using Ids = std::vector<SequenceId>;

  [[noreturn]] void Fail(const std::string& what) const {
    std::ostringstream text;
    text << "operation " << counts_.operations << " (" << last_ << "), seed " << o_.seed << ": " << what;
    throw std::runtime_error(text.str());
  }
  void Expect(bool ok, const char* what) const {
    if (!ok) Fail(what);
  }

  uint64_t Below(uint64_t n) { return random_() % n; }
  bool OneIn(uint64_t n) { return Below(n) == 0; }

  Ids Sequences(bool in_step) const {
    Ids ids;
    for (const auto& [id, seq] : model_.sequences) {
      if (seq.in_step() == in_step) ids.push_back(id);
    }
    return ids;
  }
  SequenceId Pick(const Ids& ids) { return ids[Below(ids.size())]; }

  /// Calls that change nothing when they are refused are counted too.
  template <typename Fn>
  void ExpectRefused(const char* name, Fn fn) {
    Count(name);
    ++counts_.refused;
    const CacheStats before = cache_.Stats();
    bool refused = false;
    try {
      fn();
    } catch (const Error&) {
      refused = true;
    }
    Expect(refused, "misuse was not refused");
    Expect(cache_.Stats() == before, "a refused call changed the cache");
  }

  void Count(const char* name) {
    last_ = name;
    ++counts_.operations;
  }

  void Step() {
    const Ids idle = Sequences(false), busy = Sequences(true);
    const uint64_t dice = Below(100);
    if (dice < 2) return Misuse(idle, busy);
    if (idle.empty() && busy.empty()) return OpenOne();
    if (dice < 5) {
      return static_cast<int>(idle.size() + busy.size()) < o_.max_open ? OpenOne()
                                                                       : FreeOne(Pick(idle.empty() ? busy : idle));
    }
    if (dice < 7 && !idle.empty()) return ForkOne(Pick(idle));
    if (dice < 8) return FreeOne(Pick(OneIn(4) && !busy.empty() ? busy : idle.empty() ? busy : idle));
    if (dice < 14 && !idle.empty()) return RollBackOne(Pick(idle));
    if (dice < 17 && !idle.empty()) return TruncateOne(Pick(idle));
    if (dice < 18 && !busy.empty()) return CancelOne(Pick(busy));
    if (!busy.empty() && (dice < 75 || idle.empty())) return Advance(busy);
    if (!idle.empty()) BeginSome(idle);
  }

  void OpenOne() {
    Count("Open");
    const SequenceId id = cache_.Open();
    Expect(!model_.sequences.contains(id), "Open gave a handle twice");
    model_.sequences[id];
  }

  void FreeOne(SequenceId id) {
    Count("Free");
    cache_.Free(id);
    model_.Free(id);
    Expect(!cache_.IsOpen(id), "a freed sequence is open");
  }

  void ForkOne(SequenceId id) {
    if (static_cast<int>(model_.sequences.size()) >= o_.max_open) return FreeOne(id);
    Count("Fork");
    const SequenceId fork = cache_.Fork(id);
    Expect(!model_.sequences.contains(fork), "Fork gave a handle twice");
    model_.Fork(id, fork);
  }

  void RollBackOne(SequenceId id) {
    const ModelSequence& seq = model_.sequences.at(id);
    const int64_t most = seq.kv_len() - seq.num_sealed * kPageTokens;
    int64_t tokens =
        static_cast<int64_t>(Below(static_cast<uint64_t>(OneIn(2) ? std::min<int64_t>(most, 6) : most) + 1));
    if (OneIn(8)) tokens = most;
    Count("RollBack");
    cache_.RollBack(id, tokens);
    model_.RollBack(id, tokens);
  }

  void TruncateOne(SequenceId id) {
    const int64_t len = model_.sequences.at(id).kv_len();
    int64_t to = static_cast<int64_t>(Below(static_cast<uint64_t>(len) + 1));
    if (OneIn(2)) to = std::clamp<int64_t>(to / kPageTokens * kPageTokens + static_cast<int64_t>(Below(3)) - 1, 0, len);
    Count("Truncate");
    const CacheStats before = cache_.Stats();
    const Status status = cache_.Truncate(id, to);
    Expect((status == Status::kOk) == model_.Truncate(id, to, backend_), "out of pages or not: the model disagrees");
    if (status == Status::kOk) return;
    ++counts_.out_of_pages;
    Expect(cache_.Stats() == before, "Truncate was out of pages and changed the cache");
  }

  void CancelOne(SequenceId id) {
    Count("Cancel");
    cache_.Cancel(std::vector{id});
    model_.Cancel(id);
  }

  int64_t NewTokenCount(int64_t len) {
    const int64_t to_edge = kPageTokens - len % kPageTokens;
    switch (Below(8)) {
      case 0: return 1 + static_cast<int64_t>(Below(static_cast<uint64_t>(3 * kPageTokens)));
      case 1: return std::max<int64_t>(1, to_edge + static_cast<int64_t>(Below(3)) - 1);
      case 2: return std::max<int64_t>(1, to_edge + kPageTokens + static_cast<int64_t>(Below(3)) - 1);
      case 3: return 1 + static_cast<int64_t>(Below(60));
      default: return 1 + static_cast<int64_t>(Below(4));
    }
  }

  void BeginSome(Ids idle) {
    std::shuffle(idle.begin(), idle.end(), random_);
    idle.resize(1 + Below(idle.size()));
    std::vector<NewTokens> step;
    std::vector<std::pair<SequenceId, std::vector<Token>>> tokens;
    for (const SequenceId id : idle) {
      const int64_t len = model_.sequences.at(id).kv_len();
      if (len >= o_.max_len) continue;
      const int64_t count = std::min(NewTokenCount(len), plan_.f16_pages * kPageTokens);
      step.push_back({id, count});
      tokens.push_back({id, {}});
      for (int64_t i = 0; i < count; ++i) tokens.back().second.push_back(Token{++next_seed_, nullptr});
    }
    if (step.empty()) return TruncateOne(idle[0]);
    Count("Begin");
    const CacheStats before = cache_.Stats();
    const Status status = cache_.Begin(step);
    Expect((status == Status::kOk) == model_.Begin(tokens), "out of pages or not: the model disagrees");
    if (status == Status::kOk) return;
    ++counts_.out_of_pages;
    Expect(cache_.Stats() == before, "Begin was out of pages and changed the cache");
  }

  /// Appends the next layer of some sequences that are at the same one, or commits those that have all.
  void Advance(const Ids& busy) {
    const int layer = model_.sequences.at(Pick(busy)).next_layer;
    Ids ids;
    for (const SequenceId id : busy) {
      if (model_.sequences.at(id).next_layer == layer && (ids.empty() || !OneIn(4))) ids.push_back(id);
    }
    std::shuffle(ids.begin(), ids.end(), random_);
    if (layer == o_.cache.num_layers) {
      Count("Commit");
      cache_.Commit(ids);
      model_.Commit(ids, backend_);
      return;
    }
    Append(layer, ids);
    if (OneIn(2)) AddQueries(layer, ids);
    if (o_.attend_every > 0 && OneIn(static_cast<uint64_t>(o_.attend_every))) CheckAttend(layer, ids);
  }

  int64_t NumNew(const Ids& ids) const {
    int64_t n = 0;
    for (const SequenceId id : ids) n += static_cast<int64_t>(model_.sequences.at(id).step.size());
    return n;
  }

  void Append(int layer, const Ids& ids) {
    Count("Append");
    const int64_t num_new = NumNew(ids);
    std::vector<f16_bits> sides[2];
    for (const Side side : {Side::kKey, Side::kValue}) {
      std::vector<f16_bits>& rows = sides[static_cast<size_t>(side)];
      rows.resize(static_cast<size_t>(num_new * model_.row_values));
      f16_bits* row = rows.data();
      for (const SequenceId id : ids) {
        for (const Token& token : model_.sequences.at(id).step) {
          model_.FillRow(token, layer, side, row);
          row += model_.row_values;
        }
      }
    }
    const HeadShape s = o_.cache.shape;
    const CallerRows k(sides[0], num_new, s.num_kv_heads, s.head_dim, random_()),
        v(sides[1], num_new, s.num_kv_heads, s.head_dim, random_());
    cache_.Append(layer, ids, k.view, v.view);
    for (const SequenceId id : ids) model_.sequences.at(id).next_layer = layer + 1;
  }

  std::vector<float> RandomQueries(int64_t num_values) {
    std::vector<float> q(static_cast<size_t>(num_values));
    uint64_t x = random_();
    for (float& value : q) {
      x = x * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
      value = static_cast<float>(static_cast<int64_t>(x >> 52) - 2048) / 1024.0f;
    }
    return q;
  }

  void AddQueries(int layer, const Ids& ids) {
    Count("AddQueries");
    const HeadShape s = o_.cache.shape;
    const int num_qo_heads = s.num_kv_heads * 2;
    const int64_t num_new = NumNew(ids);
    const int64_t num_values = num_new * num_qo_heads * s.head_dim;
    const std::vector<float> q =
        o_.count_queries ? std::vector<float>(static_cast<size_t>(num_values)) : RandomQueries(num_values);
    cache_.AddQueries(layer, ids, TensorView(q.data(), Dtype::kF32, num_new, num_qo_heads, s.head_dim));
    if (model_.formats[static_cast<size_t>(layer)].k.recipe.codec != Codec::kRazorKey) return;
    SecondMoment& moment = model_.moments[static_cast<size_t>(layer)];
    const float* rows = q.data();
    for (const SequenceId id : ids) {
      const ModelSequence& seq = model_.sequences.at(id);
      const int64_t count = static_cast<int64_t>(seq.step.size());
      for (int64_t i = 0; i < count; ++i) {
        if ((seq.kv_len() + i) % o_.cache.query_stride != 0) continue;
        if (o_.count_queries) {
          moment.set_count(moment.count() + num_qo_heads);
          continue;
        }
        // As one call, so that the sums are rounded alike.
        const int64_t stride = int64_t{num_qo_heads} * s.head_dim;
        backend_.AddQueries(moment, {rows + i * stride, stride, s.head_dim}, static_cast<int>(count - i), num_qo_heads,
                            o_.cache.query_stride);
        break;
      }
      rows += count * num_qo_heads * s.head_dim;
    }
  }

  /// The toy backend attends with the function used here, in the same order: equal to the last bit.
  void CheckAttend(int layer, const Ids& ids) {
    const HeadShape s = o_.cache.shape;
    const int num_qo_heads = s.num_kv_heads * 2;
    const int64_t num_new = NumNew(ids);
    const std::vector<float> q = RandomQueries(num_new * num_qo_heads * s.head_dim);
    std::vector<float> out(q.size(), std::numeric_limits<float>::quiet_NaN());
    cache_.Attend(layer, ids, TensorView(q.data(), Dtype::kF32, num_new, num_qo_heads, s.head_dim),
                  MutableTensorView(out.data(), Dtype::kF32, num_new, num_qo_heads, s.head_dim));
    const float scale = 1.0f / std::sqrt(static_cast<float>(s.head_dim));
    int64_t row = 0;
    for (const SequenceId id : ids) {
      const ModelSequence& seq = model_.sequences.at(id);
      const int64_t len = seq.kv_len() + static_cast<int64_t>(seq.step.size());
      std::vector<float> k, v;
      for (int64_t t = 0; t < len; ++t) {
        const std::vector<float> kt = model_.Read(seq, t, layer, Side::kKey, backend_),
                                 vt = model_.Read(seq, t, layer, Side::kValue, backend_);
        k.insert(k.end(), kt.begin(), kt.end());
        v.insert(v.end(), vt.begin(), vt.end());
      }
      std::vector<float> want(static_cast<size_t>(s.head_dim));
      for (int64_t t = seq.kv_len(); t < len; ++t, ++row) {
        for (int h = 0; h < num_qo_heads; ++h) {
          const int64_t at = (row * num_qo_heads + h) * s.head_dim;
          PlainAttention(q.data() + at, k.data() + h / 2 * s.head_dim, v.data() + h / 2 * s.head_dim, t + 1,
                         model_.row_values, s.head_dim, double{scale}, want.data());
          Expect(std::equal(want.begin(), want.end(), out.begin() + at), "Attend read other rows than the model");
        }
      }
    }
  }

  void Misuse(const Ids& idle, const Ids& busy) {
    const SequenceId stale{static_cast<int64_t>(1'000'000'000 + Below(1000))};
    const int layers = o_.cache.num_layers;
    const std::vector<float> none(1);
    const TensorView empty(none.data(), Dtype::kF32, 0, o_.cache.shape.num_kv_heads, o_.cache.shape.head_dim);
    switch (Below(8)) {
      case 0: return ExpectRefused("misuse: Free", [&] { cache_.Free(stale); });
      case 1: return ExpectRefused("misuse: Begin", [&] { (void)cache_.Begin(std::vector<NewTokens>{{stale, 1}}); });
      case 2:
        if (idle.empty()) return;
        return ExpectRefused("misuse: Begin of a sequence twice", [&] {
          (void)cache_.Begin(std::vector<NewTokens>{{idle[0], 1}, {idle[0], 1}});
        });
      case 3: {
        if (idle.empty()) return;
        const ModelSequence& seq = model_.sequences.at(idle[0]);
        return ExpectRefused("misuse: RollBack too far",
                             [&] { cache_.RollBack(idle[0], seq.kv_len() - seq.num_sealed * kPageTokens + 1); });
      }
      case 4:
        if (idle.empty()) return;
        return ExpectRefused("misuse: Append without a step",
                             [&] { cache_.Append(0, std::vector{idle[0]}, empty, empty); });
      case 5: {
        if (busy.empty()) return;
        const int next = model_.sequences.at(busy[0]).next_layer;
        return ExpectRefused("misuse: Append of another layer",
                             [&] { cache_.Append((next + 1) % (layers + 1), std::vector{busy[0]}, empty, empty); });
      }
      case 6:
        if (busy.empty() || model_.sequences.at(busy[0]).next_layer == layers) return;
        return ExpectRefused("misuse: Commit too early", [&] { cache_.Commit(std::vector{busy[0]}); });
      default:
        if (busy.empty()) return;
        return ExpectRefused("misuse: Truncate in a step", [&] { (void)cache_.Truncate(busy[0], 0); });
    }
  }

  void CheckStats() {
    const CacheStats s = cache_.Stats();
    const int64_t f16 = static_cast<int64_t>(model_.Used(false).size()),
                  sealed = static_cast<int64_t>(model_.Used(true).size());
    f16_peak_ = std::max(f16_peak_, f16);
    sealed_peak_ = std::max(sealed_peak_, sealed);
    Expect(s.num_sequences == static_cast<int64_t>(model_.sequences.size()), "num_sequences");
    Expect(s.f16_pages_used == f16, "f16_pages_used");
    Expect(s.sealed_pages_used == sealed, "sealed_pages_used");
    Expect(s.f16_pages_peak == f16_peak_ && s.sealed_pages_peak == sealed_peak_, "peaks");
    Expect(s.shared_pages == model_.Shared(), "shared_pages");
    Expect(s.window_bytes >= model_.RowBytes() && s.window_bytes <= f16 * plan_.f16_page_bytes, "window_bytes");
    Expect(s.sealed_bytes + s.f16_side_bytes == model_.NumSealed() * plan_.sealed_page_bytes, "sealed_bytes");
    Expect(s.exact_bytes == model_.ExactBytes(), "exact_bytes");
    Expect(s.total_bytes == s.sealed_bytes + s.f16_side_bytes + s.window_bytes + s.exact_bytes + s.table_bytes,
           "total_bytes");
    Expect(s.peak_bytes >= s.total_bytes && s.peak_bytes >= last_peak_, "peak_bytes");
    Expect(s.pages_sealed == model_.pages_sealed && s.pages_thawed == model_.pages_thawed,
           "pages_sealed, pages_thawed");
    last_peak_ = s.peak_bytes;
    int64_t tokens = 0;
    for (const auto& [id, seq] : model_.sequences) tokens += seq.kv_len();
    Expect(s.num_tokens == tokens, "num_tokens");
  }

  void CheckToken(SequenceId id, const ModelSequence& seq, int64_t t, int layer, Side side) {
    std::vector<float> got(static_cast<size_t>(model_.row_values), std::numeric_limits<float>::quiet_NaN());
    cache_.Read(id, layer, side, t, t + 1, got.data());
    if (got != model_.Read(seq, t, layer, side, backend_))
      Fail("token " + std::to_string(t) + " of sequence " + std::to_string(static_cast<int64_t>(id)) + " differs");
  }

  void CheckSomeTokens() {
    if (model_.sequences.empty()) return;
    auto it = model_.sequences.begin();
    std::advance(it, Below(model_.sequences.size()));
    const auto& [id, seq] = *it;
    Expect(cache_.kv_len(id) == seq.kv_len() && cache_.sealed_len(id) == seq.num_sealed * kPageTokens,
           "kv_len, sealed_len");
    if (seq.kv_len() == 0) return;
    const int layer = static_cast<int>(Below(static_cast<uint64_t>(o_.cache.num_layers)));
    CheckToken(id, seq, static_cast<int64_t>(Below(static_cast<uint64_t>(seq.kv_len()))), layer,
               Side{static_cast<int>(Below(2))});
    CheckToken(id, seq, seq.kv_len() - 1, layer, Side{static_cast<int>(Below(2))});
  }

  void CheckEverything() {
    for (const auto& [id, seq] : model_.sequences) {
      for (int slot = 0; slot < o_.cache.num_layers * 2; ++slot) {
        const int layer = slot / 2;
        const Side side{slot % 2};
        for (int64_t t = 0; t < seq.kv_len(); ++t) CheckToken(id, seq, t, layer, side);
        for (int64_t page = 0; page * kPageTokens < seq.kv_len(); ++page) {
          const std::span<const std::byte> bytes = cache_.SealedPage(id, layer, side, page);
          const bool is_sealed = page < seq.num_sealed && model_.Layout(layer, side).page_bytes > 0;
          Expect(bytes.empty() != is_sealed, "sealed or not");
          if (is_sealed)
            Expect(std::ranges::equal(
                       bytes, model_.images.at(seq.pages[static_cast<size_t>(page)])[static_cast<size_t>(slot)]),
                   "sealed bytes");
        }
      }
    }
  }

  DriverOptions o_;
  const Backend& backend_;
  Cache cache_;
  CachePlan plan_;
  CacheModel model_;
  std::mt19937_64 random_;
  DriverCounts counts_;
  std::string last_;
  uint64_t next_seed_ = 0;
  int64_t last_full_check_ = 0;
  int64_t f16_peak_ = 0, sealed_peak_ = 0, last_peak_ = 0;
};

}  // namespace

DriverCounts RunDriver(const DriverOptions& options) { return Driver(options).Run(); }

}  // namespace kvrazor::test
