// The life of pages: staged, sealed, thawed; checked against plain rows over long random sequences of writes.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <cmath>
#include <cstring>
#include <random>
#include <utility>
#include <vector>

#include "integrations/ggml/cache_side.h"

namespace kvrazor::ggml {
namespace {

constexpr HeadShape kShape{2, 64};
constexpr int64_t kWidth = 128;

struct Fixture {
  explicit Fixture(const char* text, int64_t slots = 1024, int64_t streams = 1, Side which = Side::kValue)
      : recipe(ParseRecipe(text)),
        pool(kPageTokens * kWidth * 2, meter),
        side({which, 0, kWidth, slots, streams}, recipe, pool, CpuBackend()) {
    side.SetLayout(MakePageLayout(which == Side::kKey ? recipe.k : recipe.v, which, kShape));
  }
  void WriteOne(int64_t slot, bool is_sink = false, float size = 1) {
    f16_bits* row = side.RowForWrite(slot, is_sink);
    for (int64_t i = 0; i < kWidth; ++i) row[i] = F16FromF32(size * normal(random));
  }
  void Write(int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) WriteOne(slot);
  }
  void Seal() {
    std::vector<int64_t> due;
    side.AppendSealable(due);
    std::vector<SealJob> jobs;
    for (const int64_t p : due) {
      if (side.shape().side == Side::kKey) side.ChooseExactTokens(p);
      jobs.push_back({&side, p, nullptr});
    }
    SealPages(jobs, SerialExecutor());
  }
  PageState state(int64_t p) const { return side.state(p); }

  std::mt19937 random{9};
  std::normal_distribution<float> normal;
  Recipe recipe;
  MemoryMeter meter;
  StagingPool pool;
  CacheSide side;
};

int64_t WholeSystemPages(int64_t bytes) {
  const int64_t unit = AddressRange::SystemPageBytes();
  return (bytes + unit - 1) / unit * unit;
}

TEST(CacheSide, APageIsSealedWhenTheNextOneIsFull) {
  Fixture f("oscar");
  f.Write(0, 255);
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kStaged);
  f.WriteOne(255);
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kSealed);
  EXPECT_EQ(f.state(1), PageState::kStaged);
  EXPECT_EQ(f.state(2), PageState::kEmpty);
  EXPECT_EQ(f.pool.used_pages(), 1);
  EXPECT_EQ(f.pool.committed_bytes(), f.pool.page_bytes());
  EXPECT_EQ(f.side.packed_bytes(), WholeSystemPages(f.side.layout().page_bytes));
}

/// Of [data, data + bytes), what the system has memory for (read-only: also its shared page of zeros).
int64_t ResidentBytes(const void* data, int64_t bytes) {
  const int64_t unit = AddressRange::SystemPageBytes();
  std::vector<unsigned char> resident(static_cast<size_t>(bytes / unit));
  EXPECT_EQ(mincore(const_cast<void*>(data), static_cast<size_t>(bytes), resident.data()), 0);
  int64_t pages = 0;
  for (const unsigned char r : resident) pages += r & 1;
  return pages * unit;
}

TEST(StagingPool, MemoryFollowsTheRowsThatAreWritten) {
  MemoryMeter meter;
  constexpr int64_t kPageBytes = 12 << 12, kRow = 384;
  StagingPool pool(kPageBytes, meter);
  const int32_t page = pool.Take();
  EXPECT_EQ(pool.committed_bytes(), 0);
  EXPECT_EQ(pool.rows(page)[kPageBytes / 2 - 1], 0);
  for (int64_t t = 0; t < kPageBytes / kRow; ++t) {
    pool.Touch(page, t * kRow, kRow);
    std::memset(reinterpret_cast<std::byte*>(pool.rows(page)) + t * kRow, 0xa5, kRow);
    ASSERT_EQ(pool.committed_bytes(), WholeSystemPages((t + 1) * kRow));
    ASSERT_EQ(meter.now(), pool.committed_bytes() + pool.table_bytes());
  }
  EXPECT_EQ(ResidentBytes(pool.rows(page), kPageBytes), kPageBytes);
  const f16_bits* rows = pool.rows(page);
  pool.Give(page);
  EXPECT_EQ(pool.committed_bytes(), 0);
  EXPECT_EQ(ResidentBytes(rows, kPageBytes), 0);
  EXPECT_EQ(pool.Take(), page);
  for (int64_t i = 0; i < kPageBytes / 2; ++i) ASSERT_EQ(rows[i], 0);
  EXPECT_EQ(pool.peak_bytes(), kPageBytes);
}

TEST(CacheSide, RowsAndSealedPagesTakeMemoryOnlyWhileTheyAreThere) {
  Fixture f("oscar", 1 << 16);
  const int64_t row = kWidth * 2, page = f.side.layout().page_bytes;
  EXPECT_LT(f.side.table_bytes(), 5 * f.side.num_pages());
  f.Write(0, 40);
  EXPECT_EQ(f.pool.committed_bytes(), WholeSystemPages(40 * row));
  f.Write(40, 255);
  EXPECT_EQ(f.pool.committed_bytes(), f.pool.page_bytes() + WholeSystemPages(127 * row));
  for (int64_t slot = 255; slot < 20 * kPageTokens; ++slot) {
    f.WriteOne(slot);
    f.Seal();
  }
  EXPECT_EQ(f.side.sealed_pages(), 19);
  EXPECT_EQ(f.pool.committed_bytes(), f.pool.page_bytes());
  EXPECT_EQ(f.side.packed_bytes(), WholeSystemPages(19 * page));
  EXPECT_EQ(ResidentBytes(f.side.sealed_bytes(0), WholeSystemPages(20 * page)), f.side.packed_bytes());
  EXPECT_LT(f.meter.peak(), 2 * f.pool.page_bytes() + WholeSystemPages(18 * page) + f.side.table_bytes() +
                                f.pool.table_bytes() + 2 * page);
  for (int64_t p = 0; p < 19; ++p) f.side.ClearPage(p);
  EXPECT_LE(ResidentBytes(f.side.sealed_bytes(0), WholeSystemPages(20 * page)), f.side.packed_bytes());
  EXPECT_LT(f.side.packed_bytes(), 20 * AddressRange::SystemPageBytes());  // one between two pages, at most
  f.side.Clear();
  EXPECT_EQ(f.side.packed_bytes(), 0);
  EXPECT_EQ(ResidentBytes(f.side.sealed_bytes(0), WholeSystemPages(20 * page)), 0);
}

TEST(CacheSide, LargerResidualsKeepMorePages) {
  Fixture f("oscar:residual=384");
  f.Write(0, 4 * 128 - 1);
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kStaged);
  f.WriteOne(511);
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kSealed);
  EXPECT_EQ(f.state(1), PageState::kStaged);
}

TEST(CacheSide, ActiveSequencesKeepAsManyPages) {
  Fixture f("oscar");
  f.side.NoteSequences(0, 3, 0);
  f.Write(0, 3 * 128);
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kStaged);
  f.Write(3 * 128, 4 * 128);
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kSealed);
}

TEST(CacheSide, NewestPagesOfOtherSequencesStay) {
  Fixture f("oscar");
  f.Write(0, 2 * 128);
  f.side.NoteSequences(0, 1, 1);  // the tokens of page 1 do not see page 0
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kStaged);
  f.Write(2 * 128, 3 * 128);
  f.side.NoteSequences(0, 1, 1);
  f.Seal();
  EXPECT_EQ(f.state(0), PageState::kSealed);
  EXPECT_EQ(f.state(1), PageState::kStaged);
}

TEST(CacheSide, AThawedPageStaysIn16BitsUntilNewerPagesAreFull) {
  Fixture f("oscar");
  f.Write(0, 4 * 128);
  f.Seal();
  ASSERT_EQ(f.state(1), PageState::kSealed);
  for (int64_t slot = 140; slot < 200; ++slot) {
    f.WriteOne(slot);
    f.Seal();
    ASSERT_EQ(f.state(1), PageState::kStaged) << "slot " << slot;
  }
  EXPECT_EQ(f.state(3), PageState::kSealed);  // page 1 is the newest now
  f.WriteOne(2 * 128);
  f.Seal();
  EXPECT_EQ(f.state(1), PageState::kSealed);
}

TEST(CacheSide, ExactTokensComeBackBitForBit) {
  Fixture f("oscar");
  std::vector<f16_bits> want(static_cast<size_t>(4 * kWidth));
  for (int64_t slot = 0; slot < 4; ++slot) f.WriteOne(slot, true);
  f.side.ReadRows(0, 4, want.data());
  f.Write(4, 256);
  f.Seal();
  ASSERT_EQ(f.state(0), PageState::kSealed);
  EXPECT_EQ(f.side.exact_bytes(), 4 * kWidth * 2);
  std::vector<f16_bits> got(want.size());
  f.side.ReadRows(0, 4, got.data());
  EXPECT_EQ(got, want);
  f.side.ClearPage(0);
  EXPECT_EQ(f.side.exact_bytes(), 0);
}

TEST(CacheSide, CopiedPagesAreEqualInEveryState) {
  Fixture from("oscar", 1024, 2);
  from.Write(0, 300);
  from.Seal();
  for (int64_t p = 0; p < 4; ++p) from.side.CopyPage(8 + p, from.side, p);
  std::vector<f16_bits> want(static_cast<size_t>(512 * kWidth));
  std::vector<f16_bits> got(want.size());
  from.side.ReadRows(0, 512, want.data());
  from.side.ReadRows(1024, 1024 + 512, got.data());
  EXPECT_EQ(got, want);
  for (int64_t p = 0; p < 4; ++p) EXPECT_EQ(from.state(8 + p), from.state(p)) << p;
}

std::vector<int> Tokens(const CacheSide& side, int64_t p) {
  std::vector<int> tokens;
  for (int t = 0; t < kPageTokens; ++t) {
    if (side.exact(p).Test(t)) tokens.push_back(t);
  }
  return tokens;
}

// Slots 130 and 140 are small, 300 smaller, 310 smallest; the pool has one place and two may be displaced from it.
TEST(CacheSide, OutlierTokensAreTracedInTheOrderOfSlots) {
  using Ints = std::vector<int>;
  Fixture f("kivi:k2g128,exact=1,exact-extra=2,sinks=1", 1024, 2, Side::kKey);
  const auto write = [&](int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) {
      const int64_t in_stream = slot % 1024;
      const float size = in_stream == 130   ? 0.5f
                         : in_stream == 140 ? 0.4f
                         : in_stream == 300 ? 0.3f
                         : in_stream == 310 ? 0.2f
                                            : 1.0f;
      f.WriteOne(slot, in_stream == 0, size);
      f.Seal();
    }
  };
  write(0, 7 * kPageTokens);
  const Ints first = Tokens(f.side, 0);
  ASSERT_EQ(first.size(), 2u) << "the sink, and whichever was the smallest";
  EXPECT_EQ(first[0], 0);
  EXPECT_EQ(Tokens(f.side, 1), Ints{140 - 128});
  EXPECT_EQ(Tokens(f.side, 2), Ints{310 - 256});
  for (int64_t p = 3; p < 6; ++p) EXPECT_EQ(Tokens(f.side, p), Ints{}) << "tracing has stopped, page " << p;
  ASSERT_EQ(f.state(5), PageState::kSealed);
  EXPECT_EQ(f.side.exact_bytes(), 4 * kWidth * 2);
  EXPECT_EQ(f.side.chosen_bytes(), 3 * kWidth * 2);
  EXPECT_EQ(f.side.chosen(2)->trace.num_displaced, 2);

  write(1024, 1024 + 3 * kPageTokens);
  EXPECT_EQ(Tokens(f.side, 8 + 1), Ints{140 - 128}) << "another stream has a pool of its own";

  // A page that is rewritten forgets its outliers and finds those of its new rows, with the state of the page below.
  f.side.ClearPage(2);
  EXPECT_EQ(f.side.chosen_bytes(), 4 * kWidth * 2);
  for (int64_t slot = 256; slot < 384; ++slot) f.WriteOne(slot, false, slot == 257 ? 0.1f : 1.0f);
  EXPECT_EQ(f.side.chosen(2), nullptr);
  for (int64_t slot = 6 * kPageTokens; slot < 7 * kPageTokens; ++slot) f.WriteOne(slot);
  f.Seal();
  ASSERT_EQ(f.state(2), PageState::kSealed);
  EXPECT_EQ(Tokens(f.side, 2), Ints{1});

  // Thawed by a single token, outliers are ordinary rows again: they stay in 16 bits only if they are chosen again.
  std::vector<f16_bits> before(kWidth), after(kWidth);
  f.side.ReadRows(257, 258, before.data());
  f.WriteOne(260);
  EXPECT_EQ(Tokens(f.side, 2), Ints{});
  f.side.ReadRows(257, 258, after.data());
  EXPECT_EQ(before, after);
}

TEST(CacheSide, ValuesKeepTheTokensOfTheirKeys) {
  Fixture keys("ott:exact-from=0", 1024, 1, Side::kKey), values("ott:exact-from=0");
  keys.Write(0, 2 * kPageTokens);
  values.Write(0, 2 * kPageTokens);
  keys.Seal();
  std::vector<f16_bits> want(kPageTokens * kWidth), got(want.size());
  values.side.ReadRows(0, kPageTokens, want.data());
  values.side.ChooseExactTokensOf(keys.side, 0);
  values.Seal();
  ASSERT_EQ(values.state(0), PageState::kSealed);
  EXPECT_EQ(values.side.exact(0), keys.side.exact(0));
  EXPECT_GE(values.side.exact(0).Count(), 5);
  values.side.ReadRows(0, kPageTokens, got.data());
  for (int t = 0; t < kPageTokens; ++t) {
    const auto row = static_cast<size_t>(t * kWidth);
    EXPECT_EQ(std::memcmp(got.data() + row, want.data() + row, kWidth * 2) == 0, values.side.exact(0).Test(t)) << t;
  }
  // Copies are the same, state and all.
  keys.side.CopyPage(4, keys.side, 0);
  EXPECT_EQ(keys.side.exact(4), keys.side.exact(0));
  EXPECT_EQ(keys.side.chosen(4)->trace, keys.side.chosen(0)->trace);
}

/// Writes, clears, copies and seals at random; staged rows are exact and everything else within what 3 bits can do.
class CacheSideRandomTest : public testing::TestWithParam<std::pair<const char*, Side>> {};

INSTANTIATE_TEST_SUITE_P(Recipes, CacheSideRandomTest,
                         testing::Values(std::pair{"oscar", Side::kValue},
                                         std::pair{"oscar:exact=2,exact-extra=5,sinks=3", Side::kKey}));

TEST_P(CacheSideRandomTest, KeepsRowsAndAccountsRight) {
  constexpr int64_t kSlots = 512, kStreams = 2;
  Fixture f(GetParam().first, kSlots, kStreams, GetParam().second);
  std::vector<std::vector<f16_bits>> model(
      static_cast<size_t>(kSlots * kStreams));  // what was written last; empty: nothing
  for (int step = 0; step < 8000; ++step) {
    const auto slot = static_cast<int64_t>(f.random() % static_cast<uint64_t>(kSlots * kStreams));
    const int64_t p = slot / kPageTokens;
    switch (f.random() % 40) {
      case 0:
        f.side.ClearPage(p);
        for (int64_t s = p * kPageTokens; s < (p + 1) * kPageTokens; ++s) model[static_cast<size_t>(s)].clear();
        break;
      case 1: {
        const int64_t to = static_cast<int64_t>(f.random() % 8);
        if (to == p) break;
        f.side.CopyPage(to, f.side, p);
        for (int t = 0; t < kPageTokens; ++t) {
          model[static_cast<size_t>(to * kPageTokens + t)] = model[static_cast<size_t>(p * kPageTokens + t)];
        }
        break;
      }
      default: {
        const int64_t last = std::min((p + 1) * kPageTokens, slot + static_cast<int64_t>(f.random() % 100) + 1);
        for (int64_t s = slot; s < last; ++s) {
          f.WriteOne(s, s % kSlots < f.recipe.sink_tokens);
          model[static_cast<size_t>(s)].resize(kWidth);
          f.side.ReadRows(s, s + 1, model[static_cast<size_t>(s)].data());
        }
        f.Seal();
      }
    }
    int64_t staged = 0, sealed = 0;
    for (int64_t q = 0; q < f.side.num_pages(); ++q) {
      staged += f.state(q) == PageState::kStaged;
      sealed += f.state(q) == PageState::kSealed;
    }
    ASSERT_EQ(f.pool.used_pages(), staged);
    ASSERT_LE(f.pool.committed_bytes(), staged * f.pool.page_bytes());
    ASSERT_EQ(f.side.sealed_pages(), sealed);
    int64_t exact = 0, chosen = 0;
    for (int64_t q = 0; q < f.side.num_pages(); ++q) {
      if (f.state(q) != PageState::kSealed) continue;
      exact += f.side.exact(q).Count();
      chosen += f.side.chosen(q) ? f.side.chosen(q)->tokens.Count() : 0;
    }
    ASSERT_EQ(f.side.exact_bytes(), exact * kWidth * 2);
    ASSERT_EQ(f.side.chosen_bytes(), chosen * kWidth * 2);
    // Neighbours may hold a system page at each end of what was given back.
    ASSERT_GE(f.side.packed_bytes(), sealed * f.side.layout().page_bytes);
    ASSERT_LE(f.side.packed_bytes(), WholeSystemPages(f.side.num_pages() * f.side.layout().page_bytes));
    ASSERT_EQ(f.meter.now(), f.pool.committed_bytes() + f.pool.table_bytes() + f.side.packed_bytes() +
                                 f.side.exact_bytes() + f.side.table_bytes());
    if (step % 100 != 0) continue;
    std::vector<f16_bits> got(kWidth);
    f.side.ReadRows(slot, slot + 1, got.data());
    const std::vector<f16_bits>& want = model[static_cast<size_t>(slot)];
    double error = 0, power = 0;
    for (int64_t i = 0; i < kWidth; ++i) {
      const double w = want.empty() ? 0.0 : F32FromF16(want[static_cast<size_t>(i)]);
      const double g = F32FromF16(got[static_cast<size_t>(i)]);
      error += (g - w) * (g - w);
      power += w * w;
    }
    // A row may have been sealed several times: with 2-bit codes each costs at most about a tenth of its power.
    ASSERT_LE(error, 0.8 * power) << "slot " << slot << " at step " << step;
  }
  EXPECT_LE(f.pool.peak_bytes(), f.side.num_pages() * f.pool.page_bytes());
  f.side.Clear();
  EXPECT_EQ(f.pool.used_pages(), 0);
  EXPECT_EQ(f.pool.committed_bytes(), 0);
  EXPECT_EQ(f.side.packed_bytes(), 0);
  EXPECT_EQ(f.side.exact_bytes(), 0);
  EXPECT_EQ(f.meter.now(), f.pool.table_bytes() + f.side.table_bytes());
}

}  // namespace
}  // namespace kvrazor::ggml
