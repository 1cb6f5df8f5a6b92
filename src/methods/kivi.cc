#include "src/methods/method.h"

namespace kvrazor {

// Keys have a few channels that are large for all tokens, so each channel gets its own range over a short run of tokens;
// values have none, so they are quantized per token. Ours flushes values with keys, a page at a time (KIVI: token by token),
// which keeps at least the paper's 128 newest tokens of both in 16 bits.
Method KiviMethod() {
  Recipe r;
  r.name = "kivi";
  r.k = {.codec = Codec::kAffine,
         .bits = 2,
         .group_size = 32,
         .axis = Axis::kPerChannel,
         .zero_point = ZeroPoint::kFloatMin};
  r.v = {.codec = Codec::kAffine,
         .bits = 2,
         .group_size = 32,
         .axis = Axis::kPerToken,
         .zero_point = ZeroPoint::kFloatMin};
  return {
      .name = r.name,
      .summary = "2-bit keys per channel, 2-bit values per token, groups of 32, no transform",
      .source = "KIVI, arXiv:2402.02750 (ICML 2024)",
      .known_limits =
          "Tokens of small norm (attention sinks) share groups with the others and lose most of their precision; the "
          "authors recommend 4 bits for models with grouped-query attention.",
      .recipe = r,
  };
}

}  // namespace kvrazor
