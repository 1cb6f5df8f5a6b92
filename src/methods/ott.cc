#include "src/methods/method.h"

namespace kvrazor {

// KIVI, with the tokens of smallest keys kept in 16 bits and out of their group's range. Settings of the OScaR paper's
// comparison (groups of 32, a pool of 5); the method's own paper: ott:k2g128,v2g128,exact=3 (heads of 128 values and more). What
// the papers leave open is said in docs/numerics.md.
Method OttMethod() {
  Method m = KiviMethod();
  m.recipe.name = "ott";
  m.recipe.exact_tokens = 5;
  m.recipe.exact_extra_tokens = 32;
  m.recipe.exact_first_layer = 2;
  m.name = m.recipe.name;
  m.summary =
      "kivi, with the tokens of smallest keys traced and kept in 16 bits: at most 37 a sequence and layer from layer 2 "
      "on";
  m.source = "OTT, arXiv:2505.10938 (ACL 2025); no code of its authors was available";
  m.known_limits =
      "Half of its bits are group parameters, as with kivi; texts below about 1000 tokens gain little. Once 32 tokens "
      "were displaced by smaller ones, no further outlier is found.";
  return m;
}

}  // namespace kvrazor
