#include "src/methods/method.h"

namespace kvrazor {

// Rotation spreads large channels, then every token is quantized by itself, keys over a range that contains 0 (B0), values not
// (B). Groups of 32 and a clip of 0.95 as in OScaR's comparison, where it stores as many bits as kivi and oscar; the authors'
// own setting, one group a head, is quarot:k2g128,v2g128 at head_dim 128. Ours seals a page at a time behind a 16-bit window,
// like every method here; the authors quantize each token at once.
Method QuarotMethod() {
  Recipe r;
  r.name = "quarot";
  r.k = {.codec = Codec::kAffine,
         .bits = 2,
         .group_size = 32,
         .axis = Axis::kPerToken,
         .zero_point = ZeroPoint::kRoundedWithZero,
         .rotate = true,
         .clip_percent = 95};
  r.v = r.k;
  r.v.zero_point = ZeroPoint::kRounded;
  return {
      .name = r.name,
      .summary = "rotation, then 2-bit keys and values per token, groups of 32, ranges clipped to 0.95",
      .source = "QuaRot, arXiv:2404.00456 (KV cache part)",
      .known_limits =
          "A channel mean survives the rotation as an offset that every group of keys must cover: far behind methods "
          "that "
          "group keys per channel or take the mean out.",
      .recipe = r,
  };
}

// The option of the authors' program that is on by default: levels about 0, the same for every group.
Method QuarotSymmetricMethod() {
  Method m = QuarotMethod();
  m.name = m.recipe.name = "quarot-sym";
  m.recipe.k.zero_point = m.recipe.v.zero_point = ZeroPoint::kSymmetric;
  m.recipe.k.clip_percent = m.recipe.v.clip_percent = 100;
  m.summary = "quarot with symmetric levels, not clipped";
  m.known_limits =
      "At 2 bits the levels are -2, -1, 0 and 1 times the largest value: one is never used. Meant for 4 bits (k4,v4).";
  return m;
}

}  // namespace kvrazor
