// Recipes as JSON files. A target of its own (kvrazor_json): it needs nlohmann-json, which the core library does not.
#pragma once

#include <string>
#include <string_view>

#include "kvrazor/recipe.h"

namespace kvrazor {

/// JSON object with every field (docs/recipes.md shows one); ParseRecipeJson reads it back. Unknown keys are errors.
/// Throws Error, naming the key and what is possible.
std::string ToJson(const Recipe& recipe);
Recipe ParseRecipeJson(std::string_view json);

/// Recipe text, or the path of a JSON file when it ends in ".json". Throws Error.
Recipe LoadRecipe(const std::string& text_or_path);

}  // namespace kvrazor
