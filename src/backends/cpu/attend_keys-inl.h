// Logits of one page: q.k of a pass's query rows with all tokens, before softmax_scale and mask.
//
//   affine, per channel   an operand q * scale[group] for each token group; token_scale multiplies the logit
//   affine, per token     operand q; parameters per token
//   razor                 k = a_t * mean + s'_t * (code - half):  a_t * q.mean + s'_t * (q.code - half * sum q),
//                         half = (2^bits - 1) / 2; a_t = 1 unless the recipe asks for a rank-one mean
//   codebook              k = n_t * (step of the code - middle): razor without a mean
//   16 bit                f32 products with the transposed page
// Exact tokens of a sealed page are overwritten by plain dot products with their 16-bit rows.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_ATTEND_KEYS_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_ATTEND_KEYS_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_ATTEND_KEYS_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_ATTEND_KEYS_INL_H_
#endif

#include <cmath>
#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "src/backends/cpu/hadamard-inl.h"
#include "src/backends/cpu/rows_f16-inl.h"
#include "src/backends/cpu/sealed_dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Blocks of at least this many rows read 16-bit pages from f32 panels.
inline constexpr int kRowsForF32Panel = 2 * kPassRows;

HWY_INLINE bool OperandIsQuery(const SideRecipe& r) {
  return r.codec == Codec::kRazorKey || r.codec == Codec::kCodebook ||
         (r.codec == Codec::kAffine && r.axis == Axis::kPerToken);
}

/// to = H * from / sqrt(dim)
HWY_INLINE void RotateRow(const float* HWY_RESTRICT from, int dim, float* HWY_RESTRICT to) {
  const auto norm = hn::Set(TagF32(), 1.0f / std::sqrt(static_cast<float>(dim)));
  HadamardRow(to, static_cast<size_t>(dim),
              [from, norm](size_t i) HWY_ATTR { return hn::Mul(hn::LoadU(TagF32(), from + i), norm); });
}

/// Fills q for the rows of one block.
HWY_NOINLINE void PrepareQueries(const AttendArgs& args, const AttendPlan& plan, int kv_head, int block,
                                 QueryBlock& q) {
  const TagF32 d;
  const SideRecipe& recipe = args.format->k.recipe;
  const int dim = plan.key_dim;
  const int num_rows = plan.tokens_in_block(block) * plan.gqa_ratio;
  if (!recipe.rotate) q.sealed = q.plain;
  for (int r = 0; r < num_rows; ++r) {
    const int64_t token = int64_t{block} * plan.block_tokens + r / plan.gqa_ratio;
    const int64_t head = int64_t{kv_head} * plan.gqa_ratio + r % plan.gqa_ratio;
    const float* from = args.q.data + token * args.q.token_stride + head * args.q.head_stride;
    float* plain = q.plain + int64_t{r} * dim;
    float* sealed = q.sealed + int64_t{r} * dim;
    for (int c = 0; c < dim; c += kLanes) hn::Store(hn::LoadU(d, from + c), d, plain + c);
    if (recipe.rotate) RotateRow(plain, dim, sealed);
    if (!OperandIsQuery(recipe)) continue;
    auto top = hn::Zero(d);
    for (int c = 0; c < dim; c += kLanes) top = hn::Max(top, hn::Abs(hn::Load(d, sealed + c)));
    const float largest = Largest(top);
    const float scale = OperandScale(largest);
    q.operand_scale[r] = scale;
    q.operand_sum[r] = scale * static_cast<float>(RoundOperand(sealed, dim, OperandInverse(largest),
                                                               q.operand + int64_t{r} * 2 * kMaxK));
    if (recipe.codec != Codec::kAffine) continue;
    for (int g = 0; g < dim / recipe.group_size; ++g) {
      auto sum = hn::Zero(d);
      for (int c = 0; c < recipe.group_size; c += kLanes)
        sum = hn::Add(sum, hn::Load(d, sealed + g * recipe.group_size + c));
      q.group_sum[r * (kMaxK / 32) + g] = Total(sum);
    }
  }
}

/// What the passes of one page share: parameters as f32, the transposed keys.
HWY_INLINE void PrepareKeyPage(const PageLayout& layout, const PageSide& side, int num_tokens, int kv_head,
                               int num_rows, TaskScratch& scratch) {
  const TagF32 d;
  if (!side.sealed) {
    const f16_bits* rows = side.rows + int64_t{kv_head} * layout.shape.head_dim;
    if (num_rows >= kRowsForF32Panel) {
      TransposeKeys(rows, layout.row_values(), num_tokens, layout.shape.head_dim, scratch.panel);
    } else {
      TransposeKeys(rows, layout.row_values(), num_tokens, layout.shape.head_dim,
                    reinterpret_cast<f16_bits*>(scratch.panel));
    }
    return;
  }
  const SealedHead head(layout, side.sealed, kv_head);
  if (layout.recipe.codec == Codec::kRazorKey) {
    const float* scalars = reinterpret_cast<const float*>(side.sealed + layout.head_scalars_at) + 2 * kv_head;
    const auto mean_scale = hn::Set(d, scalars[0]);
    const auto base = hn::Set(d, scalars[1]);
    const int16_t* mean = reinterpret_cast<const int16_t*>(head.block + layout.mean_at);
    const hn::Rebind<int16_t, TagF32> d16;
    for (int c = 0; c < layout.shape.head_dim; c += kLanes) {
      const auto m = hn::ConvertTo(d, hn::PromoteTo(DotI32(), hn::LoadU(d16, mean + c)));
      hn::Store(hn::Mul(m, mean_scale), d, scratch.key_mean + c);
    }
    for (int t = 0; t < kPageTokens; t += kLanes) {
      hn::Store(LoadE3M5(head.u8(layout.scale_at) + t, base), d, scratch.key_scale + t);
    }
    for (int t = 0; layout.mean_factor_at >= 0 && t < kPageTokens; t += kLanes)
      hn::Store(LoadF16(head.f16(layout.mean_factor_at) + t), d, scratch.key_mean_factor + t);
  }
  if (layout.recipe.codec == Codec::kCodebook) {
    for (int t = 0; t < kPageTokens; t += kLanes)
      hn::Store(LoadF16(head.f16(layout.norm_at) + t), d, scratch.key_scale + t);
    for (int c = 0; c < layout.shape.head_dim; c += kLanes) hn::Store(hn::Zero(d), d, scratch.key_mean + c);
  }
  if (layout.token_scale_at >= 0) {
    const f16_bits* scale = reinterpret_cast<const f16_bits*>(side.sealed + layout.token_scale_at);
    for (int t = 0; t < kPageTokens; t += kLanes) hn::Store(LoadF16(scale + t), d, scratch.token_scale + t);
  }
}

/// Razor keys and codebooks.
template <int kRows>
HWY_INLINE void RazorLogits(const SealedHead& head, const QueryBlock& q, int row, TaskScratch& scratch) {
  const TagF32 d;
  const PageLayout& layout = *head.layout;
  const int dim = layout.shape.head_dim;
  DotCodes<kRows>(layout.recipe.bits, head.codes(0), 0, kPageTokens, dim, q.operand + int64_t{row} * 2 * kMaxK,
                  scratch.dots);
  VecF32 sum[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = hn::Zero(d);
  const float* sealed = q.sealed + int64_t{row} * dim;
  for (int c = 0; c < dim; c += kLanes) {
    const auto mean = hn::Load(d, scratch.key_mean + c);
    for (int r = 0; r < kRows; ++r) sum[r] = hn::MulAdd(hn::Load(d, sealed + r * dim + c), mean, sum[r]);
  }
  const float half = MiddleCode(layout.recipe);
  VecF32 factor[kRows], centre[kRows], of_mean[kRows];
  for (int r = 0; r < kRows; ++r) {
    of_mean[r] = hn::Set(d, Total(sum[r]));
    factor[r] = hn::Set(d, q.operand_scale[row + r]);
    centre[r] = hn::Set(d, -half * q.operand_sum[row + r]);
  }
  const auto store = [&](int t, int r, VecF32 scale, VecF32 mean) HWY_ATTR {
    const auto dot = hn::ConvertTo(d, hn::Load(DotI32(), scratch.dots + r * kMaxK + t));
    const auto y = hn::MulAdd(hn::MulAdd(dot, factor[r], centre[r]), scale, mean);
    hn::Store(y, d, scratch.logits + r * kPageTokens + t);
  };
  if (layout.mean_factor_at < 0) {
    for (int t = 0; t < kPageTokens; t += kLanes) {
      const auto scale = hn::Load(d, scratch.key_scale + t);
      for (int r = 0; r < kRows; ++r) store(t, r, scale, of_mean[r]);
    }
  } else {
    for (int t = 0; t < kPageTokens; t += kLanes) {
      const auto scale = hn::Load(d, scratch.key_scale + t);
      const auto share = hn::Load(d, scratch.key_mean_factor + t);
      for (int r = 0; r < kRows; ++r) store(t, r, scale, hn::Mul(share, of_mean[r]));
    }
  }
}

/// scratch.logits [kRows][128] for rows row .. row + kRows - 1 of the block.
template <int kRows>
HWY_INLINE void PageLogits(const PageLayout& layout, const PageSide& side, int num_tokens, int kv_head, int num_rows,
                           const QueryBlock& q, int row, TaskScratch& scratch) {
  const TagF32 d;
  const int dim = layout.shape.head_dim;
  const float* plain = q.plain + int64_t{row} * dim;
  if (!side.sealed) {
    const int lanes = (num_tokens + 15) / 16 * 16;
    if (num_rows >= kRowsForF32Panel) {
      MultiplyPanel<kRows>(plain, dim, scratch.panel, kPageTokens, dim, lanes, scratch.logits, kPageTokens, false);
    } else {
      MultiplyPanel<kRows>(plain, dim, reinterpret_cast<const f16_bits*>(scratch.panel), kPageTokens, dim, lanes,
                           scratch.logits, kPageTokens, false);
    }
    return;
  }
  const SealedHead head(layout, side.sealed, kv_head);
  if (layout.recipe.codec != Codec::kAffine) {
    RazorLogits<kRows>(head, q, row, scratch);
  } else if (layout.recipe.axis == Axis::kPerChannel) {
    DotScaledK<kRows, false>(head, q.sealed + int64_t{row} * dim, dim, scratch.scaled, scratch.operand, scratch.dots,
                             scratch.logits, kPageTokens);
  } else {
    DotScaledLanes<kRows, false>(head, q.operand + int64_t{row} * 2 * kMaxK, q.operand_scale + row,
                                 q.group_sum + row * (kMaxK / 32), kMaxK / 32, scratch.dots, scratch.logits,
                                 kPageTokens);
  }
  if (layout.token_scale_at >= 0) {
    for (int t = 0; t < kPageTokens; t += kLanes) {
      const auto scale = hn::Load(d, scratch.token_scale + t);
      for (int r = 0; r < kRows; ++r) {
        float* logit = scratch.logits + r * kPageTokens + t;
        hn::Store(hn::Mul(hn::Load(d, logit), scale), d, logit);
      }
    }
  }
  if (HWY_UNLIKELY(side.exact.Any())) {
    const f16_bits* key = side.exact_rows + int64_t{kv_head} * dim;
    for (int t = 0; t < kPageTokens; ++t) {
      if (!side.exact.Test(t)) continue;
      for (int r = 0; r < kRows; ++r) scratch.logits[r * kPageTokens + t] = DotRow(plain + r * dim, key, dim);
      key += layout.row_values();
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_ATTEND_KEYS_INL_H_
