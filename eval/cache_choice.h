// Which KV cache a context gets: one of llama.cpp's own types, or a kvrazor recipe through the plug-in.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "ggml.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {

struct CacheChoice {
  std::string name;                ///< as asked for
  bool packed = false;             ///< true: kept by kvrazor, `recipe` says how
  std::string recipe;              ///< text or a .json path (kvrazor/recipe.h)
  ggml_type type = GGML_TYPE_F16;  ///< llama.cpp's own type, for keys and values; with `packed` always f16
};

/// A layer would stay in 16 bits although that was ruled out.
class NotPackedError : public Error {
 public:
  using Error::Error;
};

/// "f16", "q8_0", "q4_0" and so on name llama.cpp's own types; anything else is a recipe. "kvrazor:f16" is this project's
/// own storage where both know a name. Throws Error, with the recipe parser's message, if it is neither; and, but in shadow mode,
/// for a recipe that no packed cache stores.
CacheChoice ParseCacheChoice(std::string_view text, bool in_shadow = false);

/// Names separated by commas. Recipes may hold commas of their own ("oscar:k2g128,v2g64"): each name is the longest one that
/// means something. Throws Error with ParseCacheChoice's message for the first that means nothing, and for one named twice.
std::vector<std::string> SplitCacheNames(std::string_view text, bool in_shadow = false);

/// The choice for a model of num_layers layers: a recipe that treats a share of them differently (razor-2.5) as one that names
/// them by index, which is what the plug-in needs. Throws Error where text cannot say the result.
CacheChoice ForLayers(const CacheChoice& choice, int num_layers);

/// Attaches the plug-in if needed and makes contexts created from now on use the choice. `require`: creating a context fails
/// if any layer would stay in 16 bits. Throws Error. A process that only ever chooses llama.cpp's own caches is never touched.
void UseCache(const CacheChoice& choice, bool require);

/// True if this program contains the plug-in.
bool HavePlugin();

/// JSON of kvrazor_ggml_explain for the newest context; "[]" if the cache is llama.cpp's own.
std::string ExplainLayers(const CacheChoice& choice);

}  // namespace kvrazor::eval
