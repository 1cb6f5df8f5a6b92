#include "eval/shadow_pages.h"

#include <gtest/gtest.h>

namespace kvrazor::eval {
namespace {

using Pages = std::vector<int64_t>;

void Fill(ShadowPages& pages, int64_t first, int64_t last) {
  for (int64_t slot = first; slot < last; ++slot) pages.Write(slot, false);
}

TEST(ShadowPagesTest, APageIsDueOnceAFullOneStandsBehindIt) {
  ShadowPages pages(1024, 128);
  Fill(pages, 0, 255);
  EXPECT_EQ(pages.Due(), Pages{});
  Fill(pages, 255, 256);
  EXPECT_EQ(pages.Due(), Pages{0});
  Fill(pages, 256, 383);
  EXPECT_EQ(pages.Due(), Pages{0});
  Fill(pages, 383, 384);
  EXPECT_EQ(pages.Due(), (Pages{0, 1})) << "nobody sealed the first";
  pages.MarkSealed(0);
  pages.MarkSealed(1);
  EXPECT_EQ(pages.Due(), Pages{});
  EXPECT_EQ(pages.num_sealed(), 2);
  EXPECT_EQ(pages.num_written(), 384);
}

TEST(ShadowPagesTest, TheWindowIsCountedInFullPages) {
  ShadowPages pages(1024, 256);
  Fill(pages, 0, 383);
  EXPECT_EQ(pages.Due(), Pages{});
  Fill(pages, 383, 384);
  EXPECT_EQ(pages.Due(), Pages{0});
}

TEST(ShadowPagesTest, ASealedPageThatIsWrittenToIsTheNewestAgain) {
  ShadowPages pages(512, 128);
  Fill(pages, 0, 256);
  pages.MarkSealed(0);
  pages.Write(5, false);  // a ring of slots begins anew
  EXPECT_EQ(pages.num_sealed(), 0);
  EXPECT_EQ(pages.Due(), Pages{1});
  EXPECT_EQ(pages.num_written(), 256);
}

TEST(ShadowPagesTest, ExactTokensAreThoseLastWrittenAsSuch) {
  ShadowPages pages(512, 128);
  for (int64_t slot = 0; slot < 256; ++slot) pages.Write(slot, slot < 4);
  TokenMask chosen;
  chosen.Set(1);
  pages.Choose(0, chosen);
  chosen.Set(72);
  pages.Choose(1, chosen);
  EXPECT_EQ(pages.exact(0).Count(), 4);
  EXPECT_TRUE(pages.exact(1).Test(72));
  EXPECT_EQ(pages.num_sealed_exact(), 0);
  pages.MarkSealed(0);
  EXPECT_EQ(pages.num_sealed_exact(), 4);
  EXPECT_EQ(pages.num_sealed_chosen(), 0) << "sinks come first";
  pages.MarkSealed(1);
  EXPECT_EQ(pages.num_sealed_exact(), 6);
  EXPECT_EQ(pages.num_sealed_chosen(), 2);
  pages.Write(2, false);
  pages.Write(200, false);
  EXPECT_EQ(pages.exact(0).Count(), 3);
  EXPECT_EQ(pages.exact(1).Count(), 1);
}

}  // namespace
}  // namespace kvrazor::eval
