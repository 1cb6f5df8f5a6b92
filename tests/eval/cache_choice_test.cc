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

TEST(CacheChoiceTest, RequiringPackedOfALlamaTypeIsRefused) {
  EXPECT_THROW(UseCache(ParseCacheChoice("q8_0"), /*require=*/true), Error);
}

}  // namespace
}  // namespace kvrazor::eval
