#include "src/methods/method.h"

namespace kvrazor {

// Keys: before RoPE, runs of four heads are rotated by one Hadamard matrix over all their channels; then the channels of the layer
// are put into the order of their sums over a calibration text, so that a group holds channels of like level (kvrazor calibrate writes
// the order). Values: each head rotated. Both per token, quantizer B, range clipped to 0.8 as the authors do at 2 bits. Tokens behind
// the 20 largest entries of a layer's input stay in 16 bits. eval/rotate_kv.h computes it.
//
// Groups of 32 as in OScaR's comparison, where it stores as many bits as kivi and oscar; the authors' own setting, one group a head, is
// rotatekv:k2g128,v2g128 at head_dim 128. Ours seals a page at a time behind a 16-bit window, like every method here, and looks for large
// entries in what it has read so far; the authors quantize each token at once and look once, at the whole prompt. Where the number
// of kv heads is no multiple of four, runs of two or of one are rotated.
Method RotateKvMethod() {
  Recipe r;
  r.name = "rotatekv";
  r.k = {.codec = Codec::kAffine,
         .bits = 2,
         .group_size = 32,
         .axis = Axis::kPerToken,
         .zero_point = ZeroPoint::kRounded,
         .clip_percent = 80,
         .before_rope = true};
  r.v = r.k;
  r.v.before_rope = false;
  r.v.rotate = true;
  return {
      .name = r.name,
      .summary =
          "2-bit keys per token before RoPE, rotated over groups of heads, channels in a calibrated order; rotated "
          "values per token; "
          "groups of 32, ranges clipped to 0.8",
      .source = "RotateKV, arXiv:2501.16383",
      .known_limits =
          "Shadow mode only: attention would have to do RoPE for every cached key at every step. Needs a calibrated "
          "order of the "
          "channels for each model (kvrazor calibrate). The clip of 0.8 is meant for 2 bits.",
      .recipe = r,
  };
}

}  // namespace kvrazor
