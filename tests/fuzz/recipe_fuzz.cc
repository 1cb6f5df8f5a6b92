// Recipe text: any bytes either are a recipe, whose text form then reads back as the same recipe, or throw Error.
#include <string_view>

#include "kvrazor/error.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"
#include "tests/fuzz/seeds.h"

using namespace kvrazor;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  Recipe recipe;
  try {
    recipe = ParseRecipe(text);
  } catch (const Error& error) {
    if (std::string_view(error.what()).empty()) fuzz::Crash("an error without a reason");
    return 0;
  }
  Validate(recipe);
  const std::string shortest = ToText(recipe);
  if (ParseRecipe(shortest) != recipe) fuzz::Crash("'" + shortest + "' reads back as another recipe");
  if (ToText(ParseRecipe(shortest)) != shortest) fuzz::Crash("'" + shortest + "' is not its own shortest text");
  const Recipe model = recipe.ForModel(32);
  Validate(model);
  if (ParseRecipe(ToText(model)) != model) fuzz::Crash("'" + shortest + "' of 32 layers is '" + ToText(model) + "'");
  for (const int layer : {0, 1, 31}) {
    const Recipe of_layer = model.ForLayer(layer);
    Validate(of_layer);
    try {
      if (MakePageLayout(of_layer.k, Side::kKey, {2, 64}).bits_per_value() > 17)
        fuzz::Crash("keys that take more than 16 bits: " + shortest);
      if (MakePageLayout(of_layer.v, Side::kValue, {2, 64}).bits_per_value() > 17)
        fuzz::Crash("values that take more than 16 bits: " + shortest);
    } catch (const Error&) {
      // A valid recipe may not suit these heads.
    }
  }
  return 0;
}

std::vector<std::string> fuzz::Seeds() {
  return {"f16",
          "kivi",
          "oscar",
          "razor-2",
          "kivi:k2g32",
          "oscar:k2g32,v2g32,residual=128,sinks=4",
          "razor-2:sinks=8,residual=256",
          "razor-2;0-1=f16",
          "oscar;0=f16;2-5=kivi:k4g64,v4g128;30-31=razor-2:sinks=0",
          " kivi : k4 , v2g64 ; 3 = f16 ",
          "razor-2;0-0=oscar:sinks=128",
          "ott:exact=3,exact-extra=8,exact-from=0;3-5=razor-2:exact=2",
          "razor-2.5:sinks=8;0-40=f16;25%-50%=razor-3:v4g32;last2=quarot"};
}
