#include "eval/cache_choice.h"

#include <gtest/gtest.h>

#include "kvrazor/error.h"
#include "kvrazor/recipe.h"

namespace kvrazor::eval {
namespace {

TEST(CacheChoiceTest, LlamaTypesAreLlamas) {
  EXPECT_FALSE(ParseCacheChoice("f16").packed);
  EXPECT_EQ(ParseCacheChoice("q8_0").type, GGML_TYPE_Q8_0);
  EXPECT_EQ(ParseCacheChoice("q4_0").type, GGML_TYPE_Q4_0);
}

TEST(CacheChoiceTest, EveryMethodIsARecipe) {
  for (const Method& method : Methods()) {
    const CacheChoice choice = ParseCacheChoice("kvrazor:" + method.name);
    EXPECT_TRUE(choice.packed) << method.name;
    EXPECT_EQ(choice.recipe, method.name);
    EXPECT_EQ(choice.type, GGML_TYPE_F16);
  }
  EXPECT_TRUE(ParseCacheChoice("razor-2:sinks=8").packed);
}

TEST(CacheChoiceTest, ShadowMethodsAreForShadowModeOnly) {
  for (const Method& method : ShadowMethods()) {
    EXPECT_EQ(ParseCacheChoice(method.name, /*in_shadow=*/true).recipe, method.name);
    EXPECT_EQ(SplitCacheNames("f16," + method.name, /*in_shadow=*/true).size(), 2u);
    try {
      SplitCacheNames("f16," + method.name);
      ADD_FAILURE() << method.name;
    } catch (const Error& e) {
      EXPECT_NE(std::string(e.what()).find("kvrazor eval kld --shadow"), std::string::npos) << e.what();
    }
  }
}

TEST(CacheChoiceTest, SharesOfTheLayersAreNamedByIndex) {
  const CacheChoice choice = ParseCacheChoice("razor-2.5:sinks=8");
  const CacheChoice resolved = ForLayers(choice, 30);
  EXPECT_EQ(resolved.recipe, "razor-2:sinks=8;15-29=razor-2:k3");
  EXPECT_EQ(resolved.name, choice.name);
  EXPECT_EQ(ForLayers(ParseCacheChoice("razor-2"), 30).recipe, "razor-2");
  EXPECT_EQ(ForLayers(ParseCacheChoice("q8_0"), 30).name, "q8_0");
}

TEST(CacheChoiceTest, UnknownNamesGetTheParsersMessage) {
  std::string parser, choice;
  try {
    ParseRecipe("nonsense");
  } catch (const Error& e) {
    parser = e.what();
  }
  try {
    ParseCacheChoice("nonsense");
  } catch (const Error& e) {
    choice = e.what();
  }
  EXPECT_FALSE(parser.empty());
  EXPECT_EQ(choice, parser);
}

TEST(CacheChoiceTest, NamesInAListMayHoldCommas) {
  using Names = std::vector<std::string>;
  EXPECT_EQ(SplitCacheNames("f16,razor-2"), (Names{"f16", "razor-2"}));
  EXPECT_EQ(SplitCacheNames("oscar:k2g128,v2g64,f16,razor-2:sinks=8,residual=256"),
            (Names{"oscar:k2g128,v2g64", "f16", "razor-2:sinks=8,residual=256"}));
  EXPECT_EQ(SplitCacheNames("kvrazor:f16"), (Names{"kvrazor:f16"}));
  for (const char* bad : {"", "f16,", "f16,,kivi", "nonsense,f16", "f16,nonsense", "f16,kivi,f16"})
    EXPECT_THROW(SplitCacheNames(bad), Error) << bad;
}

TEST(CacheChoiceTest, RequiringPackedOfALlamaTypeIsRefused) {
  EXPECT_THROW(UseCache(ParseCacheChoice("q8_0"), /*require=*/true), Error);
}

}  // namespace
}  // namespace kvrazor::eval
