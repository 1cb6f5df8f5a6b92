#include "src/methods/method.h"

namespace kvrazor {

// The published kernels run what their example and benchmark scripts ask for, which is not quite the paper: values are not
// rotated, and 256 instead of 128 tokens stay in 16 bits. (They keep the norms in 32 bits, here 16: the rounding of a key's norm
// by 2^-11 is far below its codes' error.)
Method OscarKernelMethod() {
  Method m = OscarMethod();
  m.name = m.recipe.name = "oscar-kernel";
  m.recipe.v.rotate = false;
  m.recipe.residual_tokens = 256;
  m.summary = "oscar as its published CUDA kernels are run: values not rotated, a 16-bit window of 256 tokens";
  m.source = "OScaR, arXiv:2605.19660, and its CUDA kernels";
  m.known_limits = "Values keep whatever structure their channels have; otherwise those of oscar.";
  return m;
}

}  // namespace kvrazor
