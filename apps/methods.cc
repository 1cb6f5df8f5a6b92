// kvrazor methods: the quantization methods of this build.
#include <fmt/format.h>

#include <memory>

#include "apps/commands.h"
#include "apps/text_table.h"
#include "apps/worker.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"

namespace kvrazor::apps {
namespace {

// A common shape, for a number that people can compare; the model's own is in `kvrazor plan`.
constexpr HeadShape kTypicalShape = {.num_kv_heads = 8, .head_dim = 128};

/// Mean over the layers, where the recipe treats them differently.
double StoredBits(const Recipe& recipe) {
  constexpr int kLayers = 100;
  const Recipe model = recipe.ForModel(kLayers);
  double sum = 0;
  for (int layer = 0; layer < kLayers; ++layer) {
    Recipe own = model.ForLayer(layer);
    own.k.before_rope = false;  // as many bits as keys after RoPE
    sum += MakePageLayout(own.k, Side::kKey, kTypicalShape).bits_per_value() +
           MakePageLayout(own.v, Side::kValue, kTypicalShape).bits_per_value();
  }
  return sum / (2 * kLayers);
}

Json ToJson(const Method& method, bool shadow_only) {
  return {{"name", method.name},
          {"summary", method.summary},
          {"source", method.source},
          {"known_limits", method.known_limits},
          {"recipe", ToText(method.recipe)},
          {"shadow_mode_only", shadow_only},
          {"stored_bits_per_value", StoredBits(method.recipe)},
          {"residual_tokens", method.recipe.residual_tokens},
          {"sink_tokens", method.recipe.sink_tokens},
          {"exact_tokens", method.recipe.exact_tokens},
          {"exact_extra_tokens", method.recipe.exact_extra_tokens},
          {"exact_first_layer", method.recipe.exact_first_layer}};
}

std::string OutlierTokens(const Recipe& recipe) {
  if (recipe.exact_tokens == 0) return "";
  return fmt::format("; up to {} outlier tokens in 16 bits from layer {} on",
                     recipe.exact_tokens + recipe.exact_extra_tokens, recipe.exact_first_layer);
}

void Print(const Method& method, bool shadow_only) {
  fmt::print("{}  ({:.2f} stored bits per value with {} heads of {}; {} sink tokens{}{})\n{}{}{}\n", method.name,
             StoredBits(method.recipe), kTypicalShape.num_kv_heads, kTypicalShape.head_dim, method.recipe.sink_tokens,
             OutlierTokens(method.recipe), shadow_only ? "; shadow mode only" : "",
             Wrapped(method.summary, 100, "    "), Wrapped("Source: " + method.source, 100, "    "),
             Wrapped("Known limits: " + method.known_limits, 100, "    "));
}

void ShowMethods(bool json) {
  if (json) {
    Json list = Json::array();
    for (const Method& method : Methods()) list.push_back(ToJson(method, false));
    for (const Method& method : ShadowMethods()) list.push_back(ToJson(method, true));
    fmt::print("{}\n", list.dump(2));
    return;
  }
  for (const Method& method : Methods()) Print(method, false);
  for (const Method& method : ShadowMethods()) Print(method, true);
}

}  // namespace

void AddMethods(CLI::App& app, Invocation&) {
  auto json = std::make_shared<bool>(false);
  CLI::App* command = app.add_subcommand("methods");
  command->description(
      "The quantization methods of this build.\n"
      "Lists the methods that can be named as a recipe, with their source and known limits.");
  command->footer(
      "RECIPES\n"
      "  A recipe is a method's name, options after a colon, other methods for some layers after a semicolon; or a "
      ".json file.\n"
      "    razor-2                          the method as it is\n"
      "    razor-2:sinks=8                  the first 8 tokens stay in 16 bits\n"
      "    oscar:k2g32,v2g32,residual=256   bits and group sizes of keys and values, tokens kept in 16 bits at the "
      "end\n"
      "    razor-2;0-1=f16                  layers 0 and 1 in 16 bits\n\n"
      "EXAMPLES\n"
      "  kvrazor methods\n"
      "  kvrazor methods --json | jq -r '.[].name'");
  command->add_flag("--json", *json, "Print a JSON list");
  command->callback([json] { ShowMethods(*json); });
}

}  // namespace kvrazor::apps
