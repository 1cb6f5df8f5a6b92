#include "src/methods/method.h"

namespace kvrazor {

// Canalized rotation spreads every head's channels, omni-token scaling divides each key by its norm over all kv heads of the
// layer (the norm multiplies the logit instead), then KIVI's axes with a rounded zero point.
Method OscarMethod() {
  Recipe r;
  r.name = "oscar";
  r.k = {.codec = Codec::kAffine,
         .bits = 2,
         .group_size = 32,
         .axis = Axis::kPerChannel,
         .zero_point = ZeroPoint::kRounded,
         .token_scale = TokenScale::kAllHeads,
         .rotate = true};
  r.v = {.codec = Codec::kAffine,
         .bits = 2,
         .group_size = 32,
         .axis = Axis::kPerToken,
         .zero_point = ZeroPoint::kRounded,
         .rotate = true};
  return {
      .name = r.name,
      .summary = "rotation and one norm per token, then 2-bit keys per channel and values per token, groups of 32",
      .source = "OScaR, arXiv:2605.19660",
      .known_limits =
          "Half of its bits are group parameters (3 stored bits at 2-bit codes). Rotation hurts models whose keys have "
          "strong channel structure, such as Gemma 3.",
      .recipe = r,
  };
}

}  // namespace kvrazor
