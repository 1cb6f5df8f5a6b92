#include "apps/memory_plan.h"

#include <gtest/gtest.h>

#include "apps/failures.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe_json.h"
#include "tests/integrations/ggml/measured_bytes.h"

namespace kvrazor::apps {
namespace {

eval::ModelShape Shape(int num_layers, eval::LayerShape layer) {
  eval::ModelShape shape;
  shape.embedding_length = 576;
  shape.vocabulary = 49152;
  shape.trained_context = 8192;
  shape.layers.assign(static_cast<size_t>(num_layers), layer);
  return shape;
}

const eval::LayerShape kSmolLayer = {
    .kind = eval::LayerKind::kFull, .num_kv_heads = 3, .k_head_dim = 64, .v_head_dim = 64, .window = 0};

TEST(MemoryPlanTest, LlamaTypesByHand) {
  const eval::ModelShape shape = Shape(30, kSmolLayer);
  EXPECT_EQ(KvBytes(shape, eval::ParseCacheChoice("f16"), 8192), 30.0 * 2 * 192 * 2 * 8192);
  EXPECT_EQ(KvBytes(shape, eval::ParseCacheChoice("q8_0"), 8192), 30.0 * 2 * 192 / 32 * 34 * 8192);
  EXPECT_EQ(KvBytes(shape, eval::ParseCacheChoice("f16"), 1),
            KvBytes(shape, eval::ParseCacheChoice("f16"), 256));  // padded
}

TEST(MemoryPlanTest, PackedPagesWindowsAndSinks) {
  const eval::ModelShape shape = Shape(1, kSmolLayer);
  const eval::CacheChoice cache = eval::ParseCacheChoice("razor-2");
  const Recipe recipe = LoadRecipe("razor-2");
  const HeadShape heads = {.num_kv_heads = 3, .head_dim = 64};
  const PageLayout k = MakePageLayout(recipe.k, Side::kKey, heads), v = MakePageLayout(recipe.v, Side::kValue, heads);
  const double per_page = static_cast<double>(k.page_bytes + v.page_bytes);
  // One page more: one sealed page of keys and of values and their table entries more.
  EXPECT_NEAR(KvBytes(shape, cache, 8192 + kPageTokens) - KvBytes(shape, cache, 8192), per_page, 2 * (4096 + 64));
  EXPECT_GT(KvBytes(shape, cache, 8192), 62 * per_page);
  // The control keeps all pages as they are.
  EXPECT_NEAR(KvBytes(shape, eval::ParseCacheChoice("kvrazor:f16"), 8192),
              KvBytes(shape, eval::ParseCacheChoice("f16"), 8192), 64 * 2 * 64);
}

// What the plug-in itself reports (ggml_memory_test).
TEST(MemoryPlanTest, WithinTwoPercentOfWhatIsMeasured) {
  const eval::ModelShape shape = Shape(30, kSmolLayer);
  for (const MeasuredBytes& measured : kMeasuredBytes) {
    const std::string choice = measured.recipe == std::string("f16") ? "kvrazor:f16" : measured.recipe;
    const double planned = KvBytes(shape, eval::ParseCacheChoice(choice), measured.context);
    EXPECT_NEAR(planned, measured.bytes, 0.02 * static_cast<double>(measured.bytes))
        << choice << " at " << measured.context;
  }
}

TEST(MemoryPlanTest, WindowsLatentAndRecurrentLayersStayAsTheyAre) {
  const eval::CacheChoice f16 = eval::ParseCacheChoice("f16"), razor = eval::ParseCacheChoice("razor-2");
  eval::LayerShape window = kSmolLayer;
  window.kind = eval::LayerKind::kWindow;
  window.window = 512;
  EXPECT_EQ(KvBytes(Shape(2, window), razor, 8192), KvBytes(Shape(2, window), f16, 8192));
  EXPECT_EQ(KvBytes(Shape(2, window), f16, 8192), 2.0 * 2 * 192 * 2 * 1024);  // window and a batch
  EXPECT_NE(UnpackedLayers(Shape(2, window), razor).find("2 of 2"), std::string::npos);
  EXPECT_EQ(UnpackedLayers(Shape(2, kSmolLayer), razor), "");
  EXPECT_EQ(KvBytes(Shape(2, {.kind = eval::LayerKind::kRecurrent}), razor, 8192), 0);
  eval::LayerShape odd = kSmolLayer;
  odd.k_head_dim = odd.v_head_dim = 80;
  EXPECT_EQ(KvBytes(Shape(2, odd), razor, 8192), KvBytes(Shape(2, odd), f16, 8192));
  EXPECT_NE(UnpackedLayers(Shape(2, odd), razor).find("80"), std::string::npos);
}

TEST(MemoryPlanTest, LongestContextIsTheLargestThatFits) {
  const eval::ModelShape shape = Shape(30, kSmolLayer);
  for (const char* name : {"f16", "q4_0", "oscar", "razor-2"}) {
    const eval::CacheChoice cache = eval::ParseCacheChoice(name);
    for (const double bytes : {1e6, 2e7, 1e8, 1e9}) {
      for (const int64_t users : {1, 3, 64}) {
        const int64_t context = LongestContext(shape, cache, users, bytes, 8192);
        if (context > 0) {
          EXPECT_LE(static_cast<double>(users) * KvBytes(shape, cache, context), bytes) << name;
        }
        if (context < 8192) {
          EXPECT_GT(static_cast<double>(users) * KvBytes(shape, cache, context + 256), bytes) << name;
        }
      }
    }
    EXPECT_EQ(LongestContext(shape, cache, 1, -5, 8192), 0);
    EXPECT_EQ(LongestContext(shape, cache, 1, 1e18, 5000), 5000);  // no multiple of 256: the model's own limit
    const int64_t users = MostUsers(shape, cache, 8192, 1e9);
    EXPECT_LE(static_cast<double>(users) * KvBytes(shape, cache, 8192), 1e9);
    EXPECT_GT(static_cast<double>(users + 1) * KvBytes(shape, cache, 8192), 1e9);
    EXPECT_EQ(MostUsers(shape, cache, 8192, -1), 0);
  }
}

TEST(MemoryPlanTest, AbsurdContextsDoNotOverflow) {
  const eval::ModelShape shape = Shape(1 << 14, {.kind = eval::LayerKind::kFull,
                                                 .num_kv_heads = 1 << 14,
                                                 .k_head_dim = 1 << 16,
                                                 .v_head_dim = 1 << 16,
                                                 .window = 0});
  EXPECT_GT(KvBytes(shape, eval::ParseCacheChoice("f16"), int64_t{1} << 40), 1e25);
  EXPECT_EQ(LongestContext(shape, eval::ParseCacheChoice("f16"), 1 << 30, 1e12, int64_t{1} << 40), 0);
}

TEST(MemoryPlanTest, ParseBytes) {
  EXPECT_EQ(ParseBytes("123456"), 123456);
  EXPECT_EQ(ParseBytes("24G"), 24.0 * (1 << 30));
  EXPECT_EQ(ParseBytes("1.5GiB"), 1.5 * (1 << 30));
  EXPECT_EQ(ParseBytes("512m"), 512.0 * (1 << 20));
  EXPECT_EQ(ParseBytes("80kB"), 80.0 * 1024);
  EXPECT_EQ(ParseBytes("7B"), 7);
  for (const char* bad : {"", "G", "-1G", "0", "24X", "24GG", "1e400", "nan", "inf", "24 G", "99999999P"})
    EXPECT_THROW(ParseBytes(bad), UsageError) << bad;
}

}  // namespace
}  // namespace kvrazor::apps
