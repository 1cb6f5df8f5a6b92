#include "kvrazor/error.h"
#include "kvrazor/recipe.h"

namespace kvrazor {

void RequirePackable(const Recipe& recipe) {
  bool before_rope = recipe.k.before_rope;
  for (const LayerOverride& o : recipe.overrides) before_rope |= ParseRecipe(o.method).k.before_rope;
  if (!before_rope) return;
  throw Error(
      "recipe: '" + ToText(recipe) +
      "' quantizes keys before RoPE, so attention would have to do RoPE for every key at every step; no packed cache "
      "does. "
      "Evaluate it in shadow mode: kvrazor eval kld --shadow --calibration FILE, with a file of kvrazor calibrate.");
}

}  // namespace kvrazor
