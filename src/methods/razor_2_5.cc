#include "src/methods/method.h"

namespace kvrazor {

// Errors of late layers pass through fewer others that could make up for them, and cost more: a third bit for the keys of the
// last half of the layers lowers the KL divergence more than one for the first half, or than 4 bits for a few layers.
Method Razor25Method() {
  Method m = Razor2Method();
  m.base = m.recipe.name;
  m.name = m.recipe.name = "razor-2.5";
  m.recipe.overrides = {{.first = 50, .last = 100, .method = "razor-2:k3", .unit = LayerUnit::kPercent}};
  m.summary = "razor-2 with 3-bit keys in the last half of the layers; 2.4 to 2.5 stored bits";
  return m;
}

}  // namespace kvrazor
