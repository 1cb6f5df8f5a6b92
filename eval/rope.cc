#include "eval/rope.h"

#include <cstring>
#include <memory>

#include "eval/kv_nodes.h"
#include "ggml-cpu.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

constexpr size_t kOverheadBytes = size_t{1} << 20;  // of the graph and its tensors
constexpr int kDeepest = 16;                        // nodes between a projection and the cache

struct FreeContext {
  void operator()(ggml_context* context) const { ggml_free(context); }
};

/// True if a RoPE lies between the tensor and the matrix product that made it.
bool HasRope(const ggml_tensor* t, int depth) {
  if (!t || depth > kDeepest || t->op == GGML_OP_NONE || t->op == GGML_OP_MUL_MAT || t->op == GGML_OP_GET_ROWS)
    return false;
  if (t->op == GGML_OP_ROPE) return true;
  return HasRope(t->src[0], depth + 1) || HasRope(t->src[1], depth + 1);
}

}  // namespace

Rope::Rope(const ggml_tensor* node) : head_dim_(node->ne[0]) {
  std::memcpy(params_.data(), node->op_params, sizeof(node->op_params));
  if (const ggml_tensor* factors = node->src[2]) {
    factors_.resize(static_cast<size_t>(factors->ne[0]));
    ggml_backend_tensor_get(factors, factors_.data(), 0, factors_.size() * sizeof(float));
  }
  gain_.assign(static_cast<size_t>(head_dim_), 1.0f);  // at position 0 nothing turns: what is left is the gain
  Compute(GGML_OP_ROPE, gain_.data(), 1, 1, std::vector<int32_t>(static_cast<size_t>(positions_per_token()), 0));
}

bool Rope::is_multi() const { return !is_none() && (params_[2] & GGML_ROPE_TYPE_MROPE) != 0; }

void Rope::Compute(ggml_op op, float* rows, int64_t num_tokens, int64_t num_heads,
                   const std::vector<int32_t>& positions) const {
  const auto bytes = static_cast<size_t>(num_tokens * num_heads * head_dim_) * sizeof(float);
  const std::unique_ptr<ggml_context, FreeContext> context(ggml_init(
      {.mem_size = 2 * bytes + positions.size() * sizeof(int32_t) + factors_.size() * sizeof(float) + kOverheadBytes,
       .mem_buffer = nullptr,
       .no_alloc = false}));
  if (!context) throw Error("no memory for undoing RoPE.");
  ggml_context* c = context.get();
  ggml_tensor* x = ggml_new_tensor_3d(c, GGML_TYPE_F32, head_dim_, num_heads, num_tokens);
  ggml_tensor* at = ggml_new_tensor_1d(c, GGML_TYPE_I32, static_cast<int64_t>(positions.size()));
  ggml_tensor* factors =
      factors_.empty() ? nullptr : ggml_new_tensor_1d(c, GGML_TYPE_F32, static_cast<int64_t>(factors_.size()));
  std::memcpy(x->data, rows, bytes);
  std::memcpy(at->data, positions.data(), positions.size() * sizeof(int32_t));
  if (factors) std::memcpy(factors->data, factors_.data(), factors_.size() * sizeof(float));
  int sections[GGML_MROPE_SECTIONS] = {};
  ggml_tensor* y = is_multi()
                       ? ggml_rope_multi(c, x, at, factors, params_[1], sections, params_[2], 0, 1, 1, 0, 1, 1, 1)
                       : ggml_rope_ext(c, x, at, factors, params_[1], params_[2], 0, 1, 1, 0, 1, 1, 1);
  std::memcpy(y->op_params, params_.data(), sizeof(y->op_params));  // all of the node's, sections too
  y->op = op;
  ggml_cgraph* graph = ggml_new_graph(c);
  ggml_build_forward_expand(graph, y);
  if (ggml_graph_compute_with_ctx(c, graph, /*n_threads=*/1) != GGML_STATUS_SUCCESS)
    throw Error("ggml could not compute RoPE.");
  std::memcpy(rows, y->data, bytes);
}

void Rope::Apply(float* rows, int64_t num_tokens, int64_t num_heads, const std::vector<int32_t>& positions) const {
  if (!is_none()) Compute(GGML_OP_ROPE, rows, num_tokens, num_heads, positions);
}

void Rope::Undo(float* rows, int64_t num_tokens, int64_t num_heads, const std::vector<int32_t>& positions) const {
  if (is_none()) return;
  Compute(GGML_OP_ROPE_BACK, rows, num_tokens, num_heads, positions);
  // The way back of a gradient multiplies by the gain, too.
  for (int64_t i = 0; i < num_tokens * num_heads * head_dim_; ++i) {
    const float gain = gain_[static_cast<size_t>(i % head_dim_)];
    rows[i] /= gain * gain;
  }
}

Rope RopeOfKeys(const ggml_tensor* set_rows) {
  if (const ggml_tensor* node = RopeBehind(set_rows)) return Rope(node);
  if (HasRope(set_rows->src[0], 0))
    throw Error("its keys are put together or scaled after RoPE, so what they were before it cannot be had.");
  return Rope();
}

}  // namespace kvrazor::eval
