// The life of pages: staged, sealed, thawed; checked against plain rows over long random sequences of writes.
#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "integrations/ggml/cache_side.h"

namespace kvrazor::ggml {
namespace {

constexpr HeadShape kShape{2, 64};
constexpr int64_t kWidth = 128;

struct Fixture {
  explicit Fixture(const char* text, int64_t slots = 1024, int64_t streams = 1)
      : recipe(ParseRecipe(text)),
        pool(kPageTokens * kWidth * 2),
        side({Side::kValue, 0, kWidth, slots, streams}, recipe, pool, CpuBackend()) {
    side.SetLayout(MakePageLayout(recipe.v, Side::kValue, kShape));
  }
  void WriteOne(int64_t slot, bool exact = false) {
    f16_bits* row = side.RowForWrite(slot, exact);
    for (int64_t i = 0; i < kWidth; ++i) row[i] = F16FromF32(normal(random));
  }
  void Write(int64_t first, int64_t last) {
    for (int64_t slot = first; slot < last; ++slot) WriteOne(slot);
  }
  void Seal() {
    std::vector<int64_t> due;
    side.AppendSealable(due);
    std::vector<SealJob> jobs;
    for (const int64_t p : due) jobs.push_back({&side, p, nullptr});
    SealPages(jobs, SerialExecutor());
  }
  PageState state(int64_t p) const { return side.page(p).state; }

  std::mt19937 random{9};
  std::normal_distribution<float> normal;
  Recipe recipe;
  StagingPool pool;
  CacheSide side;
};

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
  EXPECT_EQ(f.pool.used_bytes(), f.pool.page_bytes());
  EXPECT_EQ(f.side.packed_bytes(), f.side.layout().page_bytes);
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

/// Writes, clears, copies and seals at random; staged rows are exact and everything else within what 3 bits can do.
TEST(CacheSide, RandomOperationsKeepRowsAndAccountsRight) {
  constexpr int64_t kSlots = 512, kStreams = 2;
  Fixture f("oscar", kSlots, kStreams);
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
          f.WriteOne(s);
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
    ASSERT_EQ(f.pool.used_bytes(), staged * f.pool.page_bytes());
    ASSERT_EQ(f.side.sealed_pages(), sealed);
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
  EXPECT_EQ(f.pool.used_bytes(), 0);
}

}  // namespace
}  // namespace kvrazor::ggml
