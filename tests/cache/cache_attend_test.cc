// Attention through the cache: which rows it reads, in every type and batch, and from several threads at once.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "src/cache/rows.h"
#include "tests/cache/toy_cache.h"

namespace kvrazor::test {
namespace {

constexpr int64_t P = kPageTokens;
constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

std::vector<float> Queries(uint64_t seed, int64_t num_values) {
  std::vector<float> q(static_cast<size_t>(num_values));
  for (float& x : q) x = static_cast<float>(static_cast<int64_t>(Mix(++seed) % 512) - 256) / 128.0f;  // exact in bf16
  return q;
}

/// Three sequences of different lengths in a step of different sizes; 4 query heads on 2 kv heads.
struct Batch {
  explicit Batch(const std::string& recipe, const Backend& backend = Toy()) : c(recipe, 40, 60, 2, {2, 32}, backend) {
    const int64_t lengths[] = {3 * P + 9, 0, 5 * P - 1}, counts[] = {1, 130, 3};
    for (int i = 0; i < 3; ++i) {
      seqs.push_back(c.Make(static_cast<uint64_t>(i) * 100'000 + 1, lengths[i]));
      EXPECT_EQ(
          c.Start(seqs.back(), static_cast<uint64_t>(i) * 100'000 + 1 + static_cast<uint64_t>(lengths[i]), counts[i]),
          Status::kOk);
    }
    q = Queries(7, kRows * 4 * 32);
  }

  std::vector<float> Attend(int layer, Executor& executor) const {
    std::vector<float> out(q.size(), kNan);
    c.cache.Attend(layer, seqs, {q.data(), Dtype::kF32, kRows, 4, 32}, {out.data(), Dtype::kF32, kRows, 4, 32}, {},
                   executor);
    return out;
  }

  static constexpr int64_t kRows = 1 + 130 + 3;
  ToyCache c;
  std::vector<SequenceId> seqs;
  std::vector<float> q;
};

TEST(CacheAttendTest, ABatchIsTheSameAsItsSequencesAlone) {
  const Batch b("razor-2");
  for (const int layer : {0, 1}) {
    const std::vector<float> together = b.Attend(layer, SerialExecutor());
    int64_t row = 0;
    for (const SequenceId seq : b.seqs) {
      const int64_t count = seq == b.seqs[0] ? 1 : seq == b.seqs[1] ? 130 : 3;
      std::vector<float> alone(static_cast<size_t>(count * 4 * 32), kNan);
      b.c.cache.Attend(layer, seq, {b.q.data() + row * 4 * 32, Dtype::kF32, count, 4, 32},
                       {alone.data(), Dtype::kF32, count, 4, 32});
      EXPECT_TRUE(std::equal(alone.begin(), alone.end(), together.begin() + row * 4 * 32));
      row += count;
    }
    EXPECT_EQ(b.Attend(layer, *MakeThreadPool(3)), together);
  }
}

TEST(CacheAttendTest, AManySequenceBatchIsSpreadOverThreads) {
  ToyCache c("kivi", 40, 60, 1);
  std::vector<SequenceId> seqs;
  for (uint64_t i = 0; i < 12; ++i) {
    seqs.push_back(c.Make(i * 1000 + 1, static_cast<int64_t>(i) * 29));
    ASSERT_EQ(c.Start(seqs.back(), i * 1000 + 900, 1), Status::kOk);
  }
  const std::vector<float> q = Queries(3, 12 * 32);
  std::vector<float> out[2] = {std::vector<float>(q.size(), kNan), std::vector<float>(q.size(), kNan)};
  const std::unique_ptr<Executor> pool = MakeThreadPool(2);  // 12 >= 4 sequences a thread
  for (Executor* executor : {&SerialExecutor(), pool.get()}) {
    c.cache.Attend(0, seqs, {q.data(), Dtype::kF32, 12, 1, 32},
                   {out[executor == pool.get()].data(), Dtype::kF32, 12, 1, 32}, {}, *executor);
  }
  EXPECT_EQ(out[0], out[1]);
}

TEST(CacheAttendTest, TypesAndStridesOfQueriesAndOutputs) {
  const Batch b("kivi");
  const std::vector<float> want = b.Attend(1, SerialExecutor());
  for (const Dtype dtype : {Dtype::kF32, Dtype::kF16, Dtype::kBF16}) {
    for (const bool head_major : {false, true}) {
      const int64_t head_stride = head_major ? 40 * Batch::kRows : 40, token_stride = head_major ? 40 : 40 * 4;
      std::vector<float> q_f32(static_cast<size_t>(40 * 4 * Batch::kRows), kNan), out_f32 = q_f32;
      std::vector<uint16_t> q_16(q_f32.size(), 0x7fff), out_16 = q_16;
      const bool wide = dtype == Dtype::kF32;
      const MutableTensorView q(wide ? static_cast<void*>(q_f32.data()) : q_16.data(), dtype, Batch::kRows, 4, 32,
                                token_stride, head_stride);
      const MutableTensorView out(wide ? static_cast<void*>(out_f32.data()) : out_16.data(), dtype, Batch::kRows, 4, 32,
                                  token_stride, head_stride);
      RowsFromF32(b.q.data(), q);
      b.c.cache.Attend(1, b.seqs, {q.data, dtype, Batch::kRows, 4, 32, token_stride, head_stride}, out);
      std::vector<float> got(want.size()), rounded(want.size());
      RowsToF32({out.data, dtype, Batch::kRows, 4, 32, token_stride, head_stride}, got.data());
      std::vector<uint16_t> narrow(want.size());  // the expected values, rounded to the type once
      RowsFromF32(want.data(), {wide ? static_cast<void*>(rounded.data()) : narrow.data(), dtype, Batch::kRows, 4, 32});
      if (!wide) RowsToF32({narrow.data(), dtype, Batch::kRows, 4, 32}, rounded.data());
      EXPECT_EQ(got, rounded);
    }
  }
}

/// Keeps what it was asked.
class RecordingBackend final : public ToyBackend {
 public:
  void Attend(const AttendArgs& args, Executor& executor) const override {
    CheckAttendArgs(args);
    asked.push_back(args);
    pages.emplace_back(args.pages.begin(), args.pages.end());
  }
  mutable std::vector<AttendArgs> asked;
  mutable std::vector<std::vector<AttendPage>> pages;
};

TEST(CacheAttendTest, OptionsReachTheBackendBySequence) {
  const RecordingBackend backend;
  CacheOptions o = ToyCache::Options("kivi", 10, 10, 1, {1, 32});
  o.backend = &backend;
  Cache cache(o);
  const SequenceId seqs[] = {cache.Open(), cache.Open()};
  const std::vector<float> rows(3 * P * 32);  // the longest step below
  auto start = [&](int64_t a, int64_t b) {
    const NewTokens step[] = {{seqs[0], a}, {seqs[1], b}};
    ASSERT_EQ(cache.Begin(step), Status::kOk);
    const TensorView view(rows.data(), Dtype::kF32, a + b, 1, 32);
    cache.Append(0, seqs, view, view);
  };
  start(3 * P - 90, 7);
  cache.Commit(seqs);
  start(2, 3);
  std::vector<float> out(5 * 2 * 32), lse(5 * 2);
  const std::vector<uint16_t> mask(5 * 512);
  const float slopes[2] = {1, 2}, sinks[2] = {3, 4};
  AttendOptions options;
  options.softmax_scale = 0.3f;
  options.logit_softcap = 30;
  options.mask = mask.data();
  options.mask_stride = 512;
  options.alibi_slopes = slopes;
  options.sink_logits = sinks;
  options.lse = lse.data();
  const std::vector<float> q(out.size());
  const TensorView q_view(q.data(), Dtype::kF32, 5, 2, 32);
  const MutableTensorView out_view(out.data(), Dtype::kF32, 5, 2, 32);
  cache.Attend(0, seqs, q_view, out_view, options);
  ASSERT_EQ(backend.asked.size(), 2u);
  for (int i = 0; i < 2; ++i) {
    const AttendArgs& args = backend.asked[static_cast<size_t>(i)];
    const int64_t row = i == 0 ? 0 : 2, len = i == 0 ? 3 * P - 90 : 7;
    EXPECT_EQ(args.qo_len, i == 0 ? 2 : 3);
    EXPECT_EQ(args.num_qo_heads, 2);
    EXPECT_EQ(args.softmax_scale, 0.3f);
    EXPECT_EQ(args.logit_softcap, 30);
    EXPECT_EQ(args.mask, mask.data() + row * 512);
    EXPECT_EQ(args.mask_stride, 512);
    EXPECT_EQ(args.alibi_slopes, slopes);
    EXPECT_EQ(args.sink_logits, sinks);
    EXPECT_EQ(args.lse, lse.data() + row * 2);
    EXPECT_EQ(args.q.data, q.data() + row * 2 * 32);
    EXPECT_EQ(args.out.data, out.data() + row * 2 * 32);
    EXPECT_EQ(args.causal_base, len);
    int64_t next = 0;
    for (const AttendPage& page : backend.pages[static_cast<size_t>(i)]) {
      EXPECT_EQ(page.first_key, next);
      next += page.num_tokens;
      EXPECT_EQ(page.k.sealed != nullptr, page.first_key < cache.sealed_len(seqs[i]));
    }
    EXPECT_EQ(next, len + args.qo_len);
  }
  cache.Attend(0, seqs, q_view, out_view);
  EXPECT_EQ(backend.asked.back().softmax_scale, 1.0f / std::sqrt(32.0f));
  EXPECT_EQ(backend.asked.back().mask, nullptr);
  EXPECT_EQ(backend.asked.back().lse, nullptr);
}

/// What the header promises about threads: const functions at the same time, on the same and on other sequences.
void ConstFunctionsRunTogether(const Backend& backend) {
  const Batch b("razor-2", backend);
  const std::vector<float> want[2] = {b.Attend(0, SerialExecutor()), b.Attend(1, SerialExecutor())};
  const std::vector<float> values = b.c.Read(b.seqs[2], 0, 5 * P - 1, 1, Side::kValue);
  const CacheStats stats = b.c.cache.Stats();
  std::atomic<int> wrong = 0;
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int round = 0; round < 3; ++round) {
        const int layer = (i + round) % 2;
        wrong += b.Attend(layer, SerialExecutor()) != want[layer];
        wrong += b.c.Read(b.seqs[2], 0, 5 * P - 1, 1, Side::kValue) != values;
        wrong += !(b.c.cache.Stats() == stats);
        wrong += b.c.cache.kv_len(b.seqs[0]) != 3 * P + 9;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(CacheThreadsTest, ConstFunctionsRunTogether) { ConstFunctionsRunTogether(Toy()); }
TEST(CacheThreadsTest, ConstFunctionsRunTogetherOnTheCpuBackend) { ConstFunctionsRunTogether(CpuBackend()); }

TEST(CacheThreadsTest, SealingOnManyThreadsGivesTheSameBytes) {
  ToyCache serial("razor-2", 40, 60, 3, {2, 32}), parallel("razor-2", 40, 60, 3, {2, 32});
  const std::unique_ptr<Executor> pool = MakeThreadPool(4);
  const SequenceId a = serial.Make(1, 7 * P + 3), b = parallel.cache.Open();
  ASSERT_EQ(parallel.Start(b, 1, 7 * P + 3), Status::kOk);
  parallel.cache.Commit(b, *pool);
  EXPECT_EQ(parallel.cache.sealed_len(b), 6 * P);
  EXPECT_TRUE(ToyCache::Same(serial, a, parallel, b));
}

}  // namespace
}  // namespace kvrazor::test
