// RotateKV (arXiv:2501.16383): keys are quantized before RoPE, rotated over groups of heads, channels in a calibrated order.
//
//   key after RoPE -> undo RoPE -> rotate runs of RotateKvRun heads by one Hadamard matrix -> k'[j] = k[order[j]] over all channels of
//   the layer -> quantize per token, groups of consecutive channels -> all of it undone
//
// The order is that of the channels' sums over a calibration text, ascending (kvrazor calibrate). Tokens behind the kMassiveEntries
// largest entries of a layer's input keep their 16 bits.
#pragma once

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "eval/rope.h"
#include "kvrazor/layout.h"
#include "src/ops/page_set.h"

namespace kvrazor::eval {

inline constexpr int kMassiveEntries = 20;

/// Heads that are rotated together: 4, as the authors; 2 or 1 where that does not divide the number of heads.
int RotateKvRun(int num_kv_heads);

/// Throws Error if heads of this shape cannot be rotated together (a head size that is no power of two).
void CheckRotateKvShape(HeadShape shape);

/// In place; its own inverse.
///   rows  [num_tokens][num_kv_heads][head_dim]
void RotateHeadRuns(float* rows, int64_t num_tokens, HeadShape shape);

/// Channels in ascending order of their sums, those with equal sums as they come.
std::vector<int32_t> ChannelOrder(const std::vector<double>& sums);

/// What a page of keys comes back as.
///   recipe     of the keys, with before_rope
///   order      [num_kv_heads * head_dim]
///   positions  [rope.positions_per_token()][128]
///   exact      tokens whose rows are left as they are
///   rows       [128][num_kv_heads][head_dim] f16 after RoPE; replaced
void QuantizeBeforeRope(const SideRecipe& recipe, HeadShape shape, const std::vector<int32_t>& order, const Rope& rope,
                        const std::vector<int32_t>& positions, const TokenMask& exact, f16_bits* rows);

/// The largest entries of a layer's input among the tokens seen so far.
class MassiveEntries {
 public:
  /// x: [slots.size()][width]; slots that were seen before are those of new tokens now.
  void Add(const float* x, int64_t width, const std::vector<int64_t>& slots);
  bool Contains(int64_t slot) const;

 private:
  std::vector<std::pair<float, int64_t>> largest_;  // |x| and its slot, descending
};

/// The input of the layer whose keys a SET_ROWS node stores: what its first norm reads, [width][tokens] f32. Throws Error if it is not
/// to be found in the graph.
const ggml_tensor* LayerInput(const ggml_tensor* set_rows);

}  // namespace kvrazor::eval
