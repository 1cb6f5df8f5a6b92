// Sealed pages inside saved rows: every damage is noticed, whatever byte it hits.
#include <gtest/gtest.h>

#include <cctype>
#include <cmath>
#include <cstring>
#include <random>

#include "integrations/ggml/cache_side.h"
#include "integrations/ggml/carrier.h"

namespace kvrazor::ggml {
namespace {

constexpr HeadShape kShape{3, 64};
constexpr int64_t kWidth = 3 * 64;

class CarrierTest : public testing::TestWithParam<const char*> {
 protected:
  CarrierTest()
      : recipe_(ParseRecipe(GetParam())), pool_(kPageTokens * kWidth * 2, meter_), side_(NewSide()), moment_(kShape) {
    std::mt19937 random(3);
    std::normal_distribution<float> normal;
    for (int64_t slot = 0; slot < 4 * kPageTokens; ++slot) {
      f16_bits* row = side_->RowForWrite(slot, slot < 4);
      for (int64_t i = 0; i < kWidth; ++i) row[i] = F16FromF32(normal(random));
    }
    for (int h = 0; h < kShape.num_kv_heads; ++h) {
      for (int i = 0; i < 64; ++i) moment_.variances(h)[i] = std::exp(normal(random));
      for (int i = 0; i < SecondMoment::TriangleValues(kShape); ++i)
        moment_.correlations(h)[i] = static_cast<int16_t>(random());
    }
    moment_.set_count(77);
    std::vector<int64_t> due;
    side_->AppendSealable(due);
    std::vector<SealJob> jobs;
    for (const int64_t p : due) {
      side_->ChooseExactTokens(p);
      jobs.push_back({side_.get(), p, nullptr});
    }
    SealPages(jobs, SerialExecutor());
    block_.resize(static_cast<size_t>(kPageTokens * kWidth * 2));
  }

  std::unique_ptr<CacheSide> NewSide(int layer = 2) {
    auto side =
        std::make_unique<CacheSide>(CacheSide::Shape{Side::kKey, layer, kWidth, 1024, 1}, recipe_, pool_, CpuBackend());
    side->SetLayout(MakePageLayout(recipe_.k, Side::kKey, kShape));
    return side;
  }
  std::string Read(const CacheSide& side, MomentParts& parts) {
    CarrierPage page;
    return ReadCarrier(side, block_, page, parts);
  }

  Recipe recipe_;
  MemoryMeter meter_;
  StagingPool pool_;
  std::unique_ptr<CacheSide> side_;
  SecondMoment moment_;
  std::vector<std::byte> block_;
};

TEST_P(CarrierTest, CarriesPageExactTokensAndMoment) {
  MomentParts parts;
  for (int64_t p = 0; p < 3; ++p) {
    ASSERT_TRUE(CanCarry(*side_, p));
    WriteCarrier(*side_, p, {&moment_, 5}, block_);
    ASSERT_TRUE(IsCarrier(block_));
    CarrierPage page;
    ASSERT_EQ(ReadCarrier(*side_, block_, page, parts), "");
    EXPECT_EQ(std::memcmp(page.sealed, side_->sealed_bytes(p), static_cast<size_t>(side_->layout().page_bytes)), 0);
    EXPECT_EQ(page.exact(), side_->exact(p));
    EXPECT_EQ(page.sinks.Count(), p == 0 ? 4 : 0);
    const ChosenTokens chosen = side_->chosen(p) ? *side_->chosen(p) : ChosenTokens{};
    EXPECT_EQ(page.chosen.tokens, chosen.tokens);
    EXPECT_EQ(page.chosen.trace, chosen.trace);
    if (recipe_.exact_tokens > 0 && p == 0) {
      EXPECT_GE(chosen.tokens.Count(), recipe_.exact_tokens);
    }
    if (page.exact().Any()) {
      EXPECT_EQ(
          std::memcmp(page.exact_rows, side_->exact_rows(p), static_cast<size_t>(page.exact().Count() * kWidth * 2)),
          0);
    }
  }
  SecondMoment restored(kShape);
  ASSERT_TRUE(AssembleMoment(parts, restored));
  EXPECT_EQ(restored.count(), 77);
  EXPECT_EQ(parts.steps, 5);
  for (int h = 0; h < kShape.num_kv_heads; ++h) EXPECT_EQ(restored.Square(h), moment_.Square(h));
}

TEST_P(CarrierTest, EveryFlippedBitIsNoticed) {
  WriteCarrier(*side_, 0, {&moment_, 5}, block_);
  MomentParts parts;
  ASSERT_EQ(Read(*side_, parts), "");
  std::mt19937_64 random(5);
  for (int i = 0; i < 3000; ++i) {
    // all of the header, then anywhere
    const size_t at = i < 104 * 8 ? static_cast<size_t>(i / 8) : random() % block_.size();
    if (at < 16) continue;  // the magic: then it is no carrier
    const auto bit = static_cast<std::byte>(1 << (i % 8));
    block_[at] ^= bit;
    MomentParts none;
    EXPECT_NE(Read(*side_, none), "") << "byte " << at;
    EXPECT_TRUE(none.bytes.empty());
    block_[at] ^= bit;
  }
  EXPECT_EQ(Read(*side_, parts), "");
}

TEST_P(CarrierTest, OtherLayersSidesAndRecipesAreRefused) {
  WriteCarrier(*side_, 1, {}, block_);
  MomentParts parts;
  EXPECT_NE(Read(*NewSide(3), parts).find("layer 2"), std::string::npos);
  const Recipe other = ParseRecipe("oscar:k2g64");
  CacheSide foreign({Side::kKey, 2, kWidth, 1024, 1}, other, pool_, CpuBackend());
  foreign.SetLayout(MakePageLayout(other.k, Side::kKey, kShape));
  EXPECT_NE(Read(foreign, parts).find("another recipe"), std::string::npos);
  Recipe traced = recipe_;
  traced.exact_tokens += 1;
  CacheSide other_rule({Side::kKey, 2, kWidth, 1024, 1}, traced, pool_, CpuBackend());
  other_rule.SetLayout(MakePageLayout(traced.k, Side::kKey, kShape));
  EXPECT_NE(Read(other_rule, parts).find("another recipe"), std::string::npos);
  CacheSide unknown({Side::kKey, 2, kWidth, 1024, 1}, recipe_, pool_, CpuBackend());
  EXPECT_NE(Read(unknown, parts), "");
}

std::string NameOf(const testing::TestParamInfo<const char*>& info) {
  std::string name;
  for (const char* c = info.param; *c; ++c) {
    if (std::isalnum(static_cast<unsigned char>(*c))) name += *c;
  }
  return name;
}

INSTANTIATE_TEST_SUITE_P(Recipes, CarrierTest,
                         testing::Values("oscar", "kivi", "razor-2", "kivi:exact=3,exact-extra=4"), NameOf);

}  // namespace
}  // namespace kvrazor::ggml
