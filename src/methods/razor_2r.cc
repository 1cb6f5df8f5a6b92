#include "src/methods/method.h"

namespace kvrazor {

// razor-2 whose keys subtract their own multiple of the page mean (a rank-one approximation of the page): 16 bits more a token
// and head, which pays where head_dim is large.
Method Razor2rMethod() {
  Method m = Razor2Method();
  m.name = m.recipe.name = "razor-2r";
  m.recipe.k.rank_one_mean = true;
  m.summary = "razor-2 with keys that each subtract their own multiple of the page mean; 2.3 to 2.4 stored bits";
  return m;
}

}  // namespace kvrazor
