#include "eval/rotate_kv.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>

#include "kvrazor/error.h"
#include "src/core/aligned_bytes.h"
#include "src/core/half.h"
#include "src/ops/backend.h"

namespace kvrazor::eval {
namespace {

/// x <- H x, H the Sylvester Hadamard matrix of order n (a power of two) over sqrt(n).
void Rotate(float* x, int64_t n) {
  for (int64_t stride = 1; stride < n; stride *= 2) {
    for (int64_t i = 0; i < n; ++i) {
      if (i & stride) continue;
      const float a = x[i], b = x[i + stride];
      x[i] = a + b;
      x[i + stride] = a - b;
    }
  }
  const float factor = 1 / std::sqrt(static_cast<float>(n));
  for (int64_t i = 0; i < n; ++i) x[i] *= factor;
}

bool IsNorm(const ggml_tensor* t) { return t->op == GGML_OP_RMS_NORM || t->op == GGML_OP_NORM; }

/// Operations that a projection's output goes through on its way to the cache, its input in src[0].
bool PassesOn(const ggml_tensor* t) {
  switch (t->op) {
    case GGML_OP_VIEW:
    case GGML_OP_RESHAPE:
    case GGML_OP_PERMUTE:
    case GGML_OP_CONT:
    case GGML_OP_ROPE:
    case GGML_OP_RMS_NORM:
    case GGML_OP_NORM:
    case GGML_OP_MUL:
    case GGML_OP_ADD:
    case GGML_OP_SCALE:
    case GGML_OP_CLAMP: return true;
    default: return false;
  }
}

}  // namespace

int RotateKvRun(int num_kv_heads) { return num_kv_heads % 4 == 0 ? 4 : num_kv_heads % 2 == 0 ? 2 : 1; }

void CheckRotateKvShape(HeadShape shape) {
  if (!std::has_single_bit(static_cast<unsigned>(shape.head_dim)))
    throw Error(fmt::format("rotatekv: head_dim={} is no power of two; no Hadamard matrix of its order is known here.",
                            shape.head_dim));
}

void RotateHeadRuns(float* rows, int64_t num_tokens, HeadShape shape) {
  const int64_t order = int64_t{RotateKvRun(shape.num_kv_heads)} * shape.head_dim;
  const int64_t num_runs = num_tokens * shape.num_kv_heads * shape.head_dim / order;
  for (int64_t i = 0; i < num_runs; ++i) Rotate(rows + i * order, order);
}

std::vector<int32_t> ChannelOrder(const std::vector<double>& sums) {
  std::vector<int32_t> order(sums.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int32_t a, int32_t b) { return sums[static_cast<size_t>(a)] < sums[static_cast<size_t>(b)]; });
  return order;
}

void QuantizeBeforeRope(const SideRecipe& recipe, HeadShape shape, const std::vector<int32_t>& order, const Rope& rope,
                        const std::vector<int32_t>& positions, const TokenMask& exact, f16_bits* rows) {
  SideRecipe stored = recipe;
  stored.before_rope = false;  // from here on they are keys like any others
  const PageLayout layout = MakePageLayout(stored, Side::kKey, shape);
  const int64_t width = layout.row_values();
  const auto count = static_cast<size_t>(kPageTokens * width);
  std::vector<float> keys(count);
  std::transform(rows, rows + count, keys.begin(), F32FromF16);
  rope.Undo(keys.data(), kPageTokens, shape.num_kv_heads, positions);
  RotateHeadRuns(keys.data(), kPageTokens, shape);
  std::vector<f16_bits> ordered(count);
  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t j = 0; j < width; ++j)
      ordered[static_cast<size_t>(t * width + j)] =
          F16FromF32(keys[static_cast<size_t>(t * width + order[static_cast<size_t>(j)])]);
  }

  const AlignedBytes sealed(layout.page_bytes);
  CpuBackend().Seal(layout, ordered.data(), exact, nullptr, sealed.get());
  PageSide side;
  side.sealed = sealed.get();
  std::vector<float> back(count);
  CpuBackend().Dequantize(layout, side, 0, kPageTokens, back.data());

  for (int64_t t = 0; t < kPageTokens; ++t) {
    for (int64_t j = 0; j < width; ++j)
      keys[static_cast<size_t>(t * width + order[static_cast<size_t>(j)])] = back[static_cast<size_t>(t * width + j)];
  }
  RotateHeadRuns(keys.data(), kPageTokens, shape);
  rope.Apply(keys.data(), kPageTokens, shape.num_kv_heads, positions);
  for (int t = 0; t < kPageTokens; ++t) {
    if (exact.Test(t)) continue;
    std::transform(keys.begin() + t * width, keys.begin() + (t + 1) * width, rows + t * width, F16FromF32);
  }
}

void MassiveEntries::Add(const float* x, int64_t width, const std::vector<int64_t>& slots) {
  std::erase_if(largest_,
                [&](const auto& e) { return std::find(slots.begin(), slots.end(), e.second) != slots.end(); });
  for (const int64_t slot : slots) {
    for (int64_t i = 0; i < width; ++i) {
      const float size = std::abs(*x++);
      if (!(largest_.size() < kMassiveEntries || size > largest_.back().first)) continue;
      const auto at = std::find_if(largest_.begin(), largest_.end(), [&](const auto& e) { return e.first < size; });
      largest_.insert(at, {size, slot});
      if (largest_.size() > kMassiveEntries) largest_.pop_back();
    }
  }
}

bool MassiveEntries::Contains(int64_t slot) const {
  return std::any_of(largest_.begin(), largest_.end(), [&](const auto& e) { return e.second == slot; });
}

const ggml_tensor* LayerInput(const ggml_tensor* set_rows) {
  const ggml_tensor* t = set_rows->src[0];
  while (t && PassesOn(t)) t = t->src[0];
  const ggml_tensor* input = t && t->op == GGML_OP_MUL_MAT ? t->src[1] : nullptr;
  // Behind the projection: a norm with its factors, or, where the norm comes later, the layer's input itself.
  for (t = input; t; t = t->src[0]) {
    if (IsNorm(t)) {
      input = t->src[0];
      break;
    }
    // Factors and offsets are weights; the sum of two results is a layer's output.
    if ((t->op != GGML_OP_MUL && t->op != GGML_OP_ADD) || t->src[1]->op != GGML_OP_NONE) break;
  }
  if (!input || input->type != GGML_TYPE_F32 || !ggml_is_contiguous(input) || input->ne[1] != set_rows->src[1]->ne[0])
    throw Error("the layer's input is not to be found in the graph, so its largest entries cannot be kept in 16 bits.");
  return input;
}

}  // namespace kvrazor::eval
