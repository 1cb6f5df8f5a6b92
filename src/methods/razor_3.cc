#include "src/methods/method.h"

namespace kvrazor {

// Keys dominate the error at 2 bits; with 3 bits and a rank-one mean the values are what is left.
Method Razor3Method() {
  Method m = Razor2rMethod();
  m.name = m.recipe.name = "razor-3";
  m.recipe.k.bits = 3;
  m.summary = "3-bit keys with a rank-one page mean, 2-bit values; 2.8 to 2.9 stored bits";
  return m;
}

}  // namespace kvrazor
