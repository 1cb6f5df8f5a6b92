#include "kvrazor/recipe_json.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "kvrazor/error.h"

namespace kvrazor {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(const std::string& json) {
  try {
    ParseRecipeJson(json);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

TEST(RecipeJsonTest, RoundTrips) {
  for (const Method& m : Methods()) EXPECT_EQ(ParseRecipeJson(ToJson(m.recipe)), m.recipe) << m.name;
  for (const Method& m : ShadowMethods()) EXPECT_EQ(ParseRecipeJson(ToJson(m.recipe)), m.recipe) << m.name;
  const Recipe r = ParseRecipe("oscar:k4g64,v2g128,residual=256,sinks=4;0-1=f16;7=razor-2");
  EXPECT_EQ(ParseRecipeJson(ToJson(r)), r);
  const Recipe shares = ParseRecipe("razor-2.5;0-1=f16;last1=razor-3v");
  EXPECT_EQ(ParseRecipeJson(ToJson(shares)), shares);
}

TEST(RecipeJsonTest, ErrorsNameTheField) {
  EXPECT_THAT(ErrorOf("{"), HasSubstr("not JSON"));
  EXPECT_THAT(ErrorOf("[]"), HasSubstr("JSON object"));
  EXPECT_THAT(ErrorOf(R"({"name":"oscar","bitz":2})"), HasSubstr("no field \"bitz\""));
  EXPECT_THAT(ErrorOf(R"({"name":"oscar","k":{"codec":"magic"}})"), HasSubstr("possible are f16, affine"));
  EXPECT_THAT(ErrorOf(R"({"name":"oscar","k":{"bits":"two"}})"), HasSubstr("wrong type"));
  EXPECT_THAT(ErrorOf(R"({"name":"oscar","layers":3})"), HasSubstr("array"));
  EXPECT_THAT(ErrorOf(R"({"name":"x","v":{"codec":"affine","bits":2,"group_size":32,"axis":"per-channel"}})"),
              HasSubstr("grouped per token"));
  EXPECT_THAT(ErrorOf(R"({"name":"x","v":{"codec":"affine","bits":2,"group_size":32,"clip_percent":120}})"),
              HasSubstr("50 to 100"));
  EXPECT_THAT(ErrorOf(R"({"k":{"codec":"affine","bits":2,"group_size":32}})"), HasSubstr("name is missing"));
}

TEST(RecipeJsonTest, LoadsFilesAndText) {
  EXPECT_EQ(LoadRecipe("kivi").name, "kivi");
  EXPECT_THROW(LoadRecipe("no-such-file.json"), Error);
  const std::filesystem::path path = std::filesystem::path(testing::TempDir()) / "recipe_json_test.json";
  std::ofstream(path) << ToJson(ParseRecipe("razor-2:sinks=8"));
  EXPECT_EQ(LoadRecipe(path.string()), ParseRecipe("razor-2:sinks=8"));
  std::filesystem::remove(path);
}

}  // namespace
}  // namespace kvrazor
