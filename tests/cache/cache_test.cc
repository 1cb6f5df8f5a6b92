// The life of pages at every edge: one around each page and window boundary.
#include "kvrazor/cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>
#include <string>
#include <vector>

#include "src/core/virtual_memory.h"
#include "tests/cache/toy_cache.h"

namespace kvrazor::test {
namespace {

constexpr int64_t P = kPageTokens;

class CacheTest : public testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Recipes, CacheTest,
                         testing::Values("f16", "kivi", "kivi:residual=256", "razor-2", "oscar:sinks=128;1=f16",
                                         "ott:exact-from=0"),
                         [](const auto& info) {
                           std::string name;
                           for (const char c : info.param)
                             name += std::isalnum(static_cast<unsigned char>(c)) ? c : '_';
                           return name;
                         });

TEST_P(CacheTest, SealsFullPagesThatHaveTheWindowBehindThem) {
  ToyCache c(GetParam());
  const SequenceId seq = c.cache.Open();
  const int64_t window = c.options.recipe.residual_tokens;
  for (int64_t len = 1; len <= 6 * P + 1; ++len) {
    ASSERT_EQ(c.Feed(seq, static_cast<uint64_t>(len), 1), Status::kOk);
    const int64_t full = len / P * P;
    const int64_t want = c.options.recipe.is_f16() || full < window ? 0 : full - window;
    ASSERT_EQ(c.cache.sealed_len(seq), want) << len;
    ASSERT_TRUE(c.Holds(seq, want, len, static_cast<uint64_t>(want) + 1)) << "the 16-bit part at " << len;
  }
  EXPECT_EQ(c.cache.Stats().pages_sealed, c.options.recipe.is_f16() ? 0 : (6 * P - window) / P);
}

TEST_P(CacheTest, TheSizeOfStepsDoesNotMatter) {
  const int64_t len = 5 * P + 77;
  ToyCache whole(GetParam());
  const SequenceId reference = whole.Make(1, len);
  for (const int64_t chunk : {int64_t{1}, P - 1, P, P + 1, int64_t{300}}) {
    ToyCache c(GetParam());
    const SequenceId seq = c.cache.Open();
    for (int64_t done = 0; done < len; done += chunk)
      ASSERT_EQ(c.Feed(seq, static_cast<uint64_t>(done) + 1, std::min(chunk, len - done)), Status::kOk);
    EXPECT_TRUE(ToyCache::Same(c, seq, whole, reference)) << "steps of " << chunk;
  }
}

TEST_P(CacheTest, RollBackIsAsIfTheTokensHadNeverBeen) {
  for (const int64_t len : EdgeLengths(4)) {
    for (const int64_t dropped : EdgeLengths(3)) {
      ToyCache c(GetParam());
      const SequenceId seq = c.Make(1, len);
      const int64_t most = len - c.cache.sealed_len(seq);
      if (dropped > most) {
        const CacheStats before = c.cache.Stats();
        EXPECT_THROW(c.cache.RollBack(seq, dropped), Error) << len << " - " << dropped;
        EXPECT_EQ(c.cache.Stats(), before);
        continue;
      }
      c.cache.RollBack(seq, dropped);
      ASSERT_EQ(c.cache.kv_len(seq), len - dropped);
      const int64_t sealed = c.cache.sealed_len(seq);
      ASSERT_TRUE(c.Holds(seq, sealed, len - dropped, static_cast<uint64_t>(sealed) + 1));
      // Other tokens in their place; and a cache that only ever saw those.
      const int64_t grown = 3 * P + 5;
      ASSERT_EQ(c.Feed(seq, 10'000, grown), Status::kOk);
      ToyCache fresh(GetParam());
      const SequenceId want = fresh.Make(1, len - dropped);
      ASSERT_EQ(fresh.Feed(want, 10'000, grown), Status::kOk);
      ASSERT_TRUE(ToyCache::Same(c, seq, fresh, want)) << len << " - " << dropped;
      ASSERT_EQ(c.cache.Stats().f16_pages_used, fresh.cache.Stats().f16_pages_used);
    }
  }
}

TEST_P(CacheTest, TruncateIsExactAtPageEdgesAndThawsElsewhere) {
  const int64_t len = 5 * P + 3;
  for (const int64_t to : EdgeLengths(5)) {
    ToyCache c(GetParam());
    const SequenceId seq = c.Make(1, len);
    const int64_t sealed = c.cache.sealed_len(seq);
    const bool thaws = to < sealed && to % P != 0;
    std::vector<std::vector<float>> before;
    for (int slot = 0; slot < 4; ++slot) before.push_back(c.Read(seq, 0, to, slot / 2, Side{slot % 2}));
    const std::span<const std::byte> first_page = c.cache.SealedPage(seq, 0, Side::kKey, 0);
    const std::vector<std::byte> first_bytes(first_page.begin(), first_page.end());

    ASSERT_EQ(c.cache.Truncate(seq, to), Status::kOk);
    ASSERT_EQ(c.cache.kv_len(seq), to);
    ASSERT_EQ(c.cache.sealed_len(seq), std::min(sealed, to / P * P));
    EXPECT_EQ(c.cache.Stats().pages_thawed, thaws);
    for (int slot = 0; slot < 4; ++slot) {
      std::vector<float> want = before[static_cast<size_t>(slot)];
      for (float& x : want) x = F32FromF16(F16FromF32(x));  // a thawed page holds 16 bits
      EXPECT_EQ(c.Read(seq, 0, to, slot / 2, Side{slot % 2}), want) << "to " << to << ", slot " << slot;
    }
    const int64_t exact = std::min<int64_t>(to, c.options.recipe.sink_tokens);
    EXPECT_TRUE(c.Holds(seq, 0, exact, 1)) << "sinks, to " << to;
    if (!c.options.recipe.is_f16() && to >= P) {
      EXPECT_TRUE(std::ranges::equal(c.cache.SealedPage(seq, 0, Side::kKey, 0), first_bytes))
          << "sealed bytes, to " << to;
    }
    // Grown again by single tokens, every page is sealed once.
    const int64_t sealed_before = c.cache.Stats().pages_sealed;
    for (int64_t t = to; t < len; ++t) ASSERT_EQ(c.Feed(seq, 20'000 + static_cast<uint64_t>(t), 1), Status::kOk);
    EXPECT_EQ(c.cache.sealed_len(seq), sealed);
    EXPECT_EQ(c.cache.Stats().pages_sealed - sealed_before, (sealed - std::min(sealed, to / P * P)) / P);
    EXPECT_TRUE(c.Holds(seq, std::max(sealed, to), len, 20'000 + static_cast<uint64_t>(std::max(sealed, to))));
  }
}

TEST_P(CacheTest, ForksShareSealedPagesAndCopyTheLastOneWhenOneWrites) {
  for (const int64_t len : EdgeLengths(4)) {
    ToyCache c(GetParam());
    const SequenceId a = c.Make(1, len);
    const CacheStats before = c.cache.Stats();
    const SequenceId b = c.cache.Fork(a);
    CacheStats after = c.cache.Stats();
    EXPECT_EQ(after.sealed_pages_used, before.sealed_pages_used);
    EXPECT_EQ(after.f16_pages_used, before.f16_pages_used);
    EXPECT_EQ(after.shared_pages, (len + P - 1) / P);

    const int64_t grown = 3 * P + 1;
    ASSERT_EQ(c.Feed(b, 10'000, grown), Status::kOk);
    EXPECT_EQ(c.cache.Stats().pages_copied, len % P != 0) << len;
    const int64_t a_sealed = c.cache.sealed_len(a);
    EXPECT_TRUE(c.Holds(a, a_sealed, len, static_cast<uint64_t>(a_sealed) + 1))
        << "the fork's tokens reached the original, " << len;
    ASSERT_EQ(c.Feed(a, 30'000, grown), Status::kOk);
    EXPECT_EQ(c.cache.Stats().pages_copied, len % P != 0) << "the page has one owner now and is not copied again";

    ToyCache fresh(GetParam());
    const SequenceId wa = fresh.Make(1, len), wb = fresh.Make(1, len);
    ASSERT_EQ(fresh.Feed(wa, 30'000, grown), Status::kOk);
    ASSERT_EQ(fresh.Feed(wb, 10'000, grown), Status::kOk);
    EXPECT_TRUE(ToyCache::Same(c, a, fresh, wa)) << len;
    EXPECT_TRUE(ToyCache::Same(c, b, fresh, wb)) << len;
    // Full pages of the common part are stored once, in either form.
    const CacheStats stats = c.cache.Stats();
    EXPECT_EQ(fresh.cache.Stats().sealed_pages_used - stats.sealed_pages_used + fresh.cache.Stats().f16_pages_used -
                  stats.f16_pages_used,
              len / P);
    c.cache.Free(a);
    EXPECT_TRUE(ToyCache::Same(c, b, fresh, wb)) << "after the original was freed, " << len;
    c.cache.Free(b);
    EXPECT_EQ(c.cache.Stats().sealed_pages_used + c.cache.Stats().f16_pages_used, 0);
  }
}

TEST_P(CacheTest, CancelledStepsLeaveNoTrace) {
  for (const int64_t len : EdgeLengths(3)) {
    for (const int64_t count : {int64_t{1}, P - 1, P, 3 * P + 1}) {
      ToyCache c(GetParam()), fresh(GetParam());
      const SequenceId seq = c.Make(1, len), want = fresh.Make(1, len);
      const CacheStats before = c.cache.Stats();
      ASSERT_EQ(c.Start(seq, 10'000, count), Status::kOk);
      c.cache.Cancel(seq);
      EXPECT_EQ(c.cache.Stats().f16_pages_used, before.f16_pages_used);
      EXPECT_EQ(c.cache.Stats().sealed_pages_used, before.sealed_pages_used);
      EXPECT_EQ(c.cache.Stats().total_bytes, before.total_bytes);
      ASSERT_EQ(c.Feed(seq, 20'000, 2 * P), Status::kOk);
      ASSERT_EQ(fresh.Feed(want, 20'000, 2 * P), Status::kOk);
      EXPECT_TRUE(ToyCache::Same(c, seq, fresh, want)) << len << " + " << count;
    }
  }
}

TEST(CachePoolTest, OutOfPagesChangesNothing) {
  ToyCache c("kivi", /*sealed_pages=*/2, /*f16_pages=*/4);
  const SequenceId a = c.Make(1, 3 * P);  // 2 sealed, 1 in 16 bits
  EXPECT_EQ(c.cache.sealed_len(a), 2 * P);
  const CacheStats before = c.cache.Stats();
  EXPECT_EQ(c.cache.Begin(a, P), Status::kOutOfPages);  // would seal a third page
  EXPECT_EQ(c.cache.Stats(), before);
  EXPECT_EQ(c.cache.Begin(a, P - 1), Status::kOk);
  c.cache.Cancel(a);
  const SequenceId b = c.cache.Open();
  const std::vector<NewTokens> step = {{a, 1}, {b, 2 * P + 1}};  // 1 + 3 pages, 3 free
  EXPECT_EQ(c.cache.Begin(step), Status::kOutOfPages);
  EXPECT_EQ(c.cache.kv_len(a), 3 * P);
  // 16-bit pages are short, too, when a sealed one is to be thawed ...
  ASSERT_EQ(c.Feed(b, 500, P + 1), Status::kOk);
  const SequenceId d = c.Make(900, 1);
  EXPECT_EQ(c.cache.Stats().f16_pages_used, 4);
  c.cache.RollBack(a, P);
  EXPECT_EQ(c.cache.Stats().f16_pages_used, 3);
  ASSERT_EQ(c.Feed(d, 901, P), Status::kOk);
  const CacheStats full = c.cache.Stats();
  EXPECT_EQ(full.f16_pages_used, 4);
  EXPECT_EQ(c.cache.Truncate(a, 5), Status::kOutOfPages);
  EXPECT_EQ(c.cache.Stats(), full);
  EXPECT_EQ(c.cache.Truncate(a, P), Status::kOk);  // ... but not at a page edge
  c.cache.Free(b);
  EXPECT_EQ(c.cache.Truncate(a, 5), Status::kOk);
}

TEST(CachePoolTest, PlannedPoolsNeverRunOutWithinTheLimits) {
  std::mt19937_64 random(11);
  for (int round = 0; round < 60; ++round) {
    CacheOptions o =
        ToyCache::Options(std::vector<std::string>{"f16", "kivi", "kivi:residual=384"}[random() % 3], 0, 0, 1, {1, 32});
    o.max_sequences = 1 + static_cast<int>(random() % 5);
    o.max_tokens = 1 + static_cast<int64_t>(random() % 4000);
    o.max_new_tokens = 1 + static_cast<int64_t>(random() % 700);
    Cache cache(o);
    const std::vector<float> rows(static_cast<size_t>(o.max_new_tokens * 32));
    std::vector<SequenceId> seqs;
    for (int i = 0; i < o.max_sequences; ++i) seqs.push_back(cache.Open());
    for (int step = 0; step < 200; ++step) {
      int64_t room = std::min(o.max_new_tokens, o.max_tokens - cache.Stats().num_tokens);
      std::vector<NewTokens> parts;
      std::vector<SequenceId> ids;
      int64_t total = 0;
      for (const SequenceId seq : seqs) {
        const int64_t count = std::min(room, step % 3 == 0 ? 1 + static_cast<int64_t>(random() % 300) : 1);
        if (count == 0) break;
        parts.push_back({seq, count});
        ids.push_back(seq);
        room -= count;
        total += count;
      }
      if (parts.empty()) {
        const SequenceId seq = seqs[random() % seqs.size()];
        ASSERT_EQ(
            cache.Truncate(seq, static_cast<int64_t>(random() % static_cast<uint64_t>(cache.kv_len(seq) + 1)) / P * P),
            Status::kOk);
        continue;
      }
      ASSERT_EQ(cache.Begin(parts), Status::kOk) << "round " << round << ", step " << step;
      const TensorView view(rows.data(), Dtype::kF32, total, 1, 32);
      cache.Append(0, ids, view, view);
      cache.Commit(ids);
    }
  }
}

int64_t WholeSystemPages(int64_t bytes) {
  const int64_t unit = AddressRange::SystemPageBytes();
  return (bytes + unit - 1) / unit * unit;
}

TEST(CacheStatsTest, BytesAreThoseOfTheLayout) {
  ToyCache c("razor-2;1=f16", 10, 10, 3, {2, 64});
  const int64_t page = c.cache.layout(0, Side::kKey).page_bytes + c.cache.layout(0, Side::kValue).page_bytes;
  const int64_t f16_side = P * 2 * 64 * 2;
  const SequenceId a = c.Make(1, 3 * P + 1);
  const CacheStats s = c.cache.Stats();
  EXPECT_EQ(s.sealed_bytes, 2 * 2 * page);  // 2 pages of layers 0 and 2
  EXPECT_EQ(s.f16_side_bytes, 2 * 2 * f16_side);
  EXPECT_EQ(s.window_bytes, 3 * 2 * (f16_side + WholeSystemPages(2 * 64 * 2)));  // a full page, and one row
  EXPECT_EQ(s.exact_bytes, 2 * 2 * 4 * 2 * 64 * 2);                              // 2 layers, both sides, 4 sinks
  EXPECT_GE(s.table_bytes, 2 * SecondMoment::BytesFor({2, 64}));                 // second moments of 2 layers
  EXPECT_LT(s.table_bytes, 2 * SecondMoment::BytesFor({2, 64}) + 4096);
  EXPECT_DOUBLE_EQ(s.bits_per_value,
                   8.0 * static_cast<double>(2 * page + 2 * f16_side) / static_cast<double>(3 * 2 * P * 2 * 64));
  const CachePlan plan = PlanCache(c.options);
  EXPECT_EQ(plan.pool_bytes, s.pool_bytes);
  EXPECT_EQ(plan.pool_bytes, 10 * plan.sealed_page_bytes + 10 * plan.f16_page_bytes);
  c.cache.Free(a);
  EXPECT_EQ(c.cache.Stats().total_bytes, c.cache.Stats().table_bytes);
  EXPECT_GE(c.cache.Stats().peak_bytes, s.total_bytes);
}

// Outlier tokens take the memory of their rows, are counted in the bits, and are given back with their page.
TEST(CacheStatsTest, OutlierTokensTakeWhatTheirRowsTake) {
  ToyCache c("ott:exact=3,exact-extra=4,exact-from=1;2=f16", 10, 10, 3, {2, 64});
  const int64_t page = c.cache.layout(0, Side::kKey).page_bytes + c.cache.layout(0, Side::kValue).page_bytes;
  const int64_t row = 2 * 64 * 2, f16_side = P * row;
  const SequenceId a = c.Make(1, 2 * P);
  const int64_t after_one = c.cache.Stats().exact_bytes;
  EXPECT_GE(after_one, 3 * 2 * row) << "only layer 1, keys and values";
  EXPECT_EQ(after_one % (2 * row), 0);
  ASSERT_EQ(c.Feed(a, 1000, 4 * P), Status::kOk);
  const CacheStats s = c.cache.Stats();
  EXPECT_LE(s.exact_bytes, 7 * 2 * row) << "the pool, and those displaced from it";
  EXPECT_EQ(PlanCache(c.options).exact_bytes, 7 * 2 * row) << "of one sequence, at most";
  EXPECT_DOUBLE_EQ(s.bits_per_value, 8.0 * static_cast<double>(5 * (2 * page + 2 * f16_side) + s.exact_bytes) /
                                         static_cast<double>(5 * 3 * 2 * P * 2 * 64));
  EXPECT_EQ(s.total_bytes, s.sealed_bytes + s.f16_side_bytes + s.window_bytes + s.exact_bytes + s.table_bytes);
  ASSERT_EQ(c.cache.Truncate(a, P), Status::kOk);
  EXPECT_EQ(c.cache.Stats().exact_bytes, after_one) << "as after the first page";
  const SequenceId b = c.cache.Fork(a);
  EXPECT_EQ(c.cache.Stats().exact_bytes, after_one) << "shared";
  ASSERT_EQ(c.Feed(b, 1000, 4 * P), Status::kOk);
  EXPECT_EQ(c.cache.Stats().exact_bytes, s.exact_bytes) << "the same tokens in a fork: the same are chosen";
  c.cache.Free(a);
  c.cache.Free(b);
  EXPECT_EQ(c.cache.Stats().exact_bytes, 0);
}

// Rows take memory as they come, and leave it when they are rolled back or sealed; at no time do a page's rows and its sealed
// bytes stand beside each other in all layers.
TEST(CacheStatsTest, WindowsTakeWhatTheirRowsTake) {
  ToyCache c("oscar", 10, 10, 8, {2, 64});
  const int64_t row = 2 * 64 * 2, sides = 8 * 2;
  const SequenceId a = c.Make(1, 40);
  EXPECT_EQ(c.cache.Stats().window_bytes, sides * WholeSystemPages(40 * row));
  ASSERT_EQ(c.Feed(a, 100, 60), Status::kOk);
  EXPECT_EQ(c.cache.Stats().window_bytes, sides * WholeSystemPages(100 * row));
  ASSERT_EQ(c.Start(a, 200, 100), Status::kOk);
  c.cache.Cancel(a);
  EXPECT_EQ(c.cache.Stats().window_bytes, sides * WholeSystemPages(100 * row));
  c.cache.RollBack(a, 90);
  EXPECT_EQ(c.cache.Stats().window_bytes, sides * WholeSystemPages(10 * row));
  ASSERT_EQ(c.Feed(a, 300, 2 * P - 11), Status::kOk);
  const CacheStats before = c.cache.Stats();
  EXPECT_EQ(before.window_bytes, sides * (P * row + WholeSystemPages((P - 1) * row)));
  ASSERT_EQ(c.Feed(a, 900, 1), Status::kOk);
  const CacheStats after = c.cache.Stats();
  EXPECT_EQ(after.sealed_pages_used, 1);
  EXPECT_EQ(after.window_bytes, sides * P * row);
  const int64_t sealed_at_once =
      2 * (c.cache.layout(0, Side::kKey).page_bytes + c.cache.layout(0, Side::kValue).page_bytes);
  EXPECT_LE(after.peak_bytes, sides * 2 * P * row + sealed_at_once + after.table_bytes);
  c.cache.Free(a);
  EXPECT_EQ(c.cache.Stats().window_bytes, 0);
}

TEST(CacheQueriesTest, TakesThePositionsThatAreMultiplesOfTheStride) {
  // However the tokens are cut into steps: the toy backend seals the number of query rows into the page.
  std::vector<std::vector<std::byte>> pages;
  for (const int64_t chunk : {int64_t{1}, int64_t{7}, P}) {
    ToyCache c("razor-2", 10, 10, 1);
    const SequenceId seq = c.cache.Open();
    for (int64_t done = 0; done < 2 * P; done += chunk) {
      const int64_t count = std::min(chunk, 2 * P - done);
      ASSERT_EQ(c.Start(seq, static_cast<uint64_t>(done) + 1, count), Status::kOk);
      const std::vector<float> q(static_cast<size_t>(count * 3 * 32));
      c.cache.AddQueries(0, seq, TensorView(q.data(), Dtype::kF32, count, 3, 32));
      c.cache.Commit(seq);
    }
    const std::span<const std::byte> bytes = c.cache.SealedPage(seq, 0, Side::kKey, 0);
    pages.emplace_back(bytes.begin(), bytes.end());
    SecondMoment moment({1, 32});
    moment.set_count(2 * P / 4 * 3);
    TokenMask sinks;
    for (int t = 0; t < 4; ++t) sinks.Set(t);
    std::vector<std::byte> want(bytes.size());
    Toy().Seal(c.cache.layout(0, Side::kKey), c.Rows(1, P, 0, Side::kKey).data(), sinks, &moment, want.data());
    EXPECT_EQ(pages.back(), want) << "steps of " << chunk;
  }
}

}  // namespace
}  // namespace kvrazor::test
