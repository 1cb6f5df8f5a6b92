#include "src/methods/method.h"

namespace kvrazor {

// Our own: keys as page mean + one scale per token with codes chosen by error feedback in the metric of the queries seen so
// far and an unbiased gain, values per channel over the page after taking out each token's norm; 8-bit parameters.
Method Razor2Method() {
  Recipe r;
  r.name = "razor-2";
  r.k = {.codec = Codec::kRazorKey, .bits = 2, .rotate = true};
  r.v = {.codec = Codec::kRazorValue, .bits = 2, .rotate = true};
  r.sink_tokens = 4;
  return {
      .name = r.name,
      .summary =
          "page mean + scale per token, codes by error feedback; values per channel with token norms; 2.2 stored bits",
      .source = "this project, docs/numerics.md",
      .known_limits =
          "The metric is learnt from the queries of the running text: the first page after a change of topic is sealed "
          "with the old one. A value vector very unlike its page can lose precision.",
      .recipe = r,
  };
}

}  // namespace kvrazor
