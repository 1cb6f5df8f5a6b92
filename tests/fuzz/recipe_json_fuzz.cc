// Recipe JSON: any bytes either are a recipe, whose JSON form then reads back as the same recipe, or throw Error.
#include <string_view>

#include "kvrazor/error.h"
#include "kvrazor/recipe.h"
#include "kvrazor/recipe_json.h"
#include "tests/fuzz/seeds.h"

using namespace kvrazor;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  Recipe recipe;
  try {
    recipe = ParseRecipeJson(json);
  } catch (const Error& error) {
    if (std::string_view(error.what()).empty()) fuzz::Crash("an error without a reason");
    return 0;
  }
  Validate(recipe);
  const std::string again = ToJson(recipe);
  if (ParseRecipeJson(again) != recipe) fuzz::Crash("reads back as another recipe: " + again);
  return 0;
}

std::vector<std::string> fuzz::Seeds() {
  std::vector<std::string> seeds = {"{}", "[]", "null", "{\"name\":", "{\"name\":1e999}", std::string(3000, '[')};
  for (const Method& method : Methods()) seeds.push_back(ToJson(method.recipe));
  seeds.push_back(ToJson(ParseRecipe("oscar:k4g64,sinks=7,residual=512;0-1=f16;3=kivi:v4g32")));
  return seeds;
}
