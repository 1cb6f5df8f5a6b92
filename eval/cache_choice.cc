#include "eval/cache_choice.h"

#include <algorithm>
#include <array>

#include "kvrazor/error.h"
#include "kvrazor/ggml.h"
#include "kvrazor/recipe_json.h"

namespace kvrazor::eval {
namespace {

constexpr std::string_view kOwnPrefix = "kvrazor:";

struct NamedType {
  std::string_view name;
  ggml_type type;
};
constexpr std::array kLlamaTypes = {
    NamedType{"f32", GGML_TYPE_F32},   NamedType{"f16", GGML_TYPE_F16},   NamedType{"bf16", GGML_TYPE_BF16},
    NamedType{"q8_0", GGML_TYPE_Q8_0}, NamedType{"q5_1", GGML_TYPE_Q5_1}, NamedType{"q5_0", GGML_TYPE_Q5_0},
    NamedType{"q4_1", GGML_TYPE_Q4_1}, NamedType{"q4_0", GGML_TYPE_Q4_0}, NamedType{"iq4_nl", GGML_TYPE_IQ4_NL},
};

}  // namespace

CacheChoice ParseCacheChoice(std::string_view text, bool in_shadow) {
  for (const NamedType& named : kLlamaTypes) {
    if (text == named.name) return {.name = std::string(text), .packed = false, .recipe = {}, .type = named.type};
  }
  std::string_view recipe = text;
  if (recipe.starts_with(kOwnPrefix)) recipe.remove_prefix(kOwnPrefix.size());
  const Recipe loaded = LoadRecipe(std::string(recipe));
  if (!in_shadow) RequirePackable(loaded);
  return {.name = std::string(text), .packed = true, .recipe = std::string(recipe), .type = GGML_TYPE_F16};
}

std::vector<std::string> SplitCacheNames(std::string_view text, bool in_shadow) {
  std::vector<std::string> names;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t first_comma = std::min(text.find(',', begin), text.size());
    size_t end = first_comma;
    for (size_t comma = first_comma; comma <= text.size(); comma = std::min(text.find(',', comma + 1), text.size())) {
      try {
        ParseCacheChoice(text.substr(begin, comma - begin), in_shadow);
        end = comma;
      } catch (const Error&) {
        // It may still mean something together with what follows the comma.
      }
      if (comma == text.size()) break;
    }
    const std::string name(text.substr(begin, end - begin));
    ParseCacheChoice(name, in_shadow);
    if (std::find(names.begin(), names.end(), name) != names.end())
      throw Error("the cache '" + name + "' is named twice.");
    names.push_back(name);
    begin = end + 1;
  }
  return names;
}

bool HavePlugin() {
#ifdef KVRAZOR_HAVE_GGML_PLUGIN
  return true;
#else
  return false;
#endif
}

CacheChoice ForLayers(const CacheChoice& choice, int num_layers) {
  if (!choice.packed) return choice;
  const Recipe recipe = LoadRecipe(choice.recipe);
  if (!recipe.depends_on_num_layers()) return choice;
  const Recipe by_index = recipe.ForModel(num_layers);
  CacheChoice resolved = choice;
  resolved.recipe = ToText(by_index);
  if (ParseRecipe(resolved.recipe) != by_index) {
    throw Error("the recipe '" + choice.recipe +
                "' sets what text cannot say and layers by their share of the model's; name its layers by index.");
  }
  return resolved;
}

void UseCache(const CacheChoice& choice, bool require) {
  if (!choice.packed) {
    if (require)
      throw Error("--require asks for a packed cache, but '" + choice.name +
                  "' is llama.cpp's own. Name a recipe (kvrazor methods).");
#ifdef KVRAZOR_HAVE_GGML_PLUGIN
    // Attached earlier in this process: off for the contexts to come. Never attached: llama.cpp stays untouched.
    std::array<char, 512> ignored{};
    kvrazor_ggml_set_recipe("off", false, ignored.data(), ignored.size());
#endif
    return;
  }
#ifdef KVRAZOR_HAVE_GGML_PLUGIN
  std::array<char, 2048> error{};
  if (!kvrazor_ggml_attach(error.data(), error.size())) throw Error(error.data());
  if (!kvrazor_ggml_set_recipe(choice.recipe.c_str(), require, error.data(), error.size())) throw Error(error.data());
#else
  throw Error(
      "'" + choice.name +
      "' needs the plug-in, which is not part of this build. Possible: llama.cpp's own types (f16, q8_0, q4_0).");
#endif
}

std::string ExplainLayers(const CacheChoice& choice) {
  if (!choice.packed) return "[]";
#ifdef KVRAZOR_HAVE_GGML_PLUGIN
  std::string json(kvrazor_ggml_explain(nullptr, 0) + 1, '\0');
  kvrazor_ggml_explain(json.data(), json.size());
  json.resize(json.find('\0') == std::string::npos ? json.size() : json.find('\0'));
  return json;
#else
  return "[]";
#endif
}

}  // namespace kvrazor::eval
