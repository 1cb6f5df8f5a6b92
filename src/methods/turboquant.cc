#include <string>
#include <utility>

#include "src/methods/method.h"

namespace kvrazor {
namespace {

const char* const kSource = "TurboQuant, arXiv:2504.19874; matched norm: TurboQuant+";

Method TurboQuant(std::string name, int k_bits, int v_bits, std::string summary) {
  Recipe r;
  r.name = std::move(name);
  r.k = {.codec = Codec::kCodebook, .bits = k_bits, .rotate = true};
  r.v = {.codec = Codec::kCodebook, .bits = v_bits, .rotate = true};
  return {
      .name = r.name,
      .summary = std::move(summary),
      .source = kSource,
      .known_limits =
          "Keys whose channels have means of their own (Qwen) are not near a normal distribution after the rotation "
          "and are "
          "lost at 2 and 3 bits. The rotation is the Hadamard matrix without random signs; no residual sketch (QJL), "
          "which "
          "hurts behind a softmax.",
      .recipe = r,
  };
}

}  // namespace

// After a rotation every coordinate of a direction has nearly the same normal law, so that one fixed codebook is close to the
// best one. Ours: the "mse" quantizer with the norm that makes what is read back as long as what was stored.
Method TurboQuant2Method() {
  return TurboQuant("turboquant-2", 2, 2, "rotation, one norm a token and head, 2-bit codes into a normal codebook");
}

// The paper's 2.5 bits give a quarter of the channels 3 bits and does not say which. As many bits, and more use: all keys.
Method TurboQuant25Method() {
  Method m = TurboQuant("turboquant-2.5", 3, 2, "turboquant with 3-bit keys and 2-bit values");
  m.known_limits += " The paper splits channels, not sides, into 3 and 2 bits.";
  return m;
}

Method TurboQuant3Method() { return TurboQuant("turboquant-3", 3, 3, "turboquant with 3-bit codes"); }

}  // namespace kvrazor
