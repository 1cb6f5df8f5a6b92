#include "src/methods/method.h"

namespace kvrazor {

Method F16Method() {
  Recipe r;
  r.name = "f16";
  return {
      .name = r.name,
      .summary = "16 bit, our own storage and attention: the control that every other method is compared with",
      .source = "-",
      .known_limits = "Saves nothing.",
      .recipe = r,
  };
}

}  // namespace kvrazor
