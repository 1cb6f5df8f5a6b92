// Values of one page: adds sum_t p[r][t] * v[t] to the accumulators of a pass's query rows.
//
//   affine, per token     an operand p * scale[group] for each channel group
//   affine, per channel   operand p; parameters per channel
//   razor                 v = n_t * s_c * (code - half + z_c / 8): operand p * n, then
//                         out_c += s_c * (sum_t p n code + (z_c / 8 - half) * sum_t p n), group by group of tokens
//   codebook              v = n_t * (step of the code - middle): razor with all s_c = 1, z_c = 0
//   16 bit                f32 products with the page as it lies
// Sealed pages go to the accumulator in their own basis, 16-bit rows (and exact tokens) to the plain one.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_ATTEND_VALUES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_ATTEND_VALUES_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_ATTEND_VALUES_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_ATTEND_VALUES_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "src/backends/cpu/attend_keys-inl.h"
#include "src/backends/cpu/rows_f16-inl.h"
#include "src/backends/cpu/sealed_dot-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// What the passes of one page share.
HWY_INLINE void PrepareValuePage(const PageLayout& layout, const PageSide& side, int num_tokens, int kv_head,
                                 int num_rows, TaskScratch& scratch) {
  const TagF32 d;
  const int dim = layout.shape.head_dim;
  if (!side.sealed) {
    if (num_rows >= kRowsForF32Panel) {
      ConvertValues(side.rows + int64_t{kv_head} * dim, layout.row_values(), num_tokens, dim, scratch.value_panel);
    }
    return;
  }
  const SealedHead head(layout, side.sealed, kv_head);
  if (layout.recipe.codec == Codec::kCodebook) {
    for (int c = 0; c < dim; c += kLanes) {
      hn::Store(hn::Set(d, -MiddleCode(layout.recipe)), d, scratch.value_centre + c);
      hn::Store(hn::Set(d, 1.0f), d, scratch.value_scale + c);
    }
    for (int t = 0; t < kPageTokens; t += kLanes)
      hn::Store(LoadF16(head.f16(layout.norm_at) + t), d, scratch.value_norm + t);
  }
  if (layout.recipe.codec != Codec::kRazorValue) return;
  const auto half = hn::Set(d, MiddleCode(layout.recipe));
  const hn::Rebind<int8_t, TagF32> d8;
  const int num_groups = kPageTokens / layout.tokens_per_group();
  for (int c = 0; c < num_groups * dim; c += kLanes) {
    const auto z = hn::ConvertTo(d, hn::PromoteTo(DotI32(), hn::LoadU(d8, head.i8(layout.centre_at) + c)));
    hn::Store(hn::MulSub(z, hn::Set(d, 0.125f), half), d, scratch.value_centre + c);
    hn::Store(LoadE5M3(head.u8(layout.scale_at) + c), d, scratch.value_scale + c);
  }
  for (int t = 0; t < kPageTokens; t += kLanes)
    hn::Store(LoadE5M3(head.u8(layout.norm_at) + t), d, scratch.value_norm + t);
}

/// Operands of p [kRows][128] times `factor` [128] (nullptr: 1): bytes, scales, and sums over each group of tokens in units
/// of p * factor.
template <int kRows>
HWY_INLINE void WeightOperands(const float* p, const float* factor, int group, TaskScratch& scratch,
                               float (&scale)[kRows], float (&sum)[kPageTokens / 32][kRows]) {
  const TagF32 d;
  for (int r = 0; r < kRows; ++r) {
    const float* x = p + r * kPageTokens;
    auto top = hn::Zero(d);
    if (factor) {
      for (int t = 0; t < kPageTokens; t += kLanes) {
        const auto y = hn::Mul(hn::Load(d, x + t), hn::Load(d, factor + t));
        hn::Store(y, d, scratch.scaled + t);
        top = hn::Max(top, y);
      }
      x = scratch.scaled;
    } else {
      for (int t = 0; t < kPageTokens; t += kLanes) top = hn::Max(top, hn::Load(d, x + t));
    }
    const float largest = Largest(top);
    scale[r] = OperandScale(largest);
    const float inverse = OperandInverse(largest);
    for (int g = 0; g < kPageTokens / group; ++g) {
      sum[g][r] = scale[r] * static_cast<float>(RoundOperand(x + g * group, group, inverse,
                                                             scratch.operand + r * 2 * kMaxK + g * group));
    }
  }
}

/// Razor values and codebooks.
template <int kRows>
HWY_INLINE void AddRazorValues(const SealedHead& head, TaskScratch& scratch, float* out, int64_t out_stride) {
  const TagF32 d;
  const PageLayout& layout = *head.layout;
  const int dim = layout.shape.head_dim;
  const int group = layout.tokens_per_group();
  float scale[kRows], sum[kPageTokens / 32][kRows];
  WeightOperands<kRows>(scratch.logits, scratch.value_norm, group, scratch, scale, sum);
  for (int g = 0; g < kPageTokens / group; ++g) {
    DotCodes<kRows>(layout.recipe.bits, head.codes(g * group), 0, dim, group, scratch.operand + g * group,
                    scratch.dots);
    for (int c = 0; c < dim; c += kLanes) {
      const auto s = hn::Load(d, scratch.value_scale + g * dim + c);
      const auto centre = hn::Load(d, scratch.value_centre + g * dim + c);
      for (int r = 0; r < kRows; ++r) {
        const auto dot = hn::ConvertTo(d, hn::Load(DotI32(), scratch.dots + r * kMaxK + c));
        const auto y = hn::MulAdd(dot, hn::Set(d, scale[r]), hn::Mul(centre, hn::Set(d, sum[g][r])));
        hn::Store(hn::MulAdd(y, s, hn::Load(d, out + r * out_stride + c)), d, out + r * out_stride + c);
      }
    }
  }
}

template <int kRows>
HWY_INLINE void AddChannelScaledValues(const SealedHead& head, TaskScratch& scratch, float* out, int64_t out_stride) {
  const int group = head.layout->recipe.group_size;
  float scale[kRows], sum[kPageTokens / 32][kRows], group_sum[kRows][kPageTokens / 32];
  WeightOperands<kRows>(scratch.logits, nullptr, kPageTokens, scratch, scale, sum);
  for (int r = 0; r < kRows; ++r) {
    for (int g = 0; g < kPageTokens / group; ++g) {
      auto total = hn::Zero(TagF32());
      for (int t = 0; t < group; t += kLanes) {
        total = hn::Add(total, hn::Load(TagF32(), scratch.logits + r * kPageTokens + g * group + t));
      }
      group_sum[r][g] = Total(total);
    }
  }
  DotScaledLanes<kRows, true>(head, scratch.operand, scale, group_sum[0], kPageTokens / 32, scratch.dots, out,
                              out_stride);
}

/// Adds the page with the probabilities in scratch.logits [kRows][128] to rows of value_dim values.
///   out_sealed, out_plain  [kRows][value_dim]
template <int kRows>
HWY_INLINE void AddValues(const PageLayout& layout, const PageSide& side, int first_token, int num_tokens, int kv_head,
                          int num_rows, TaskScratch& scratch, float* out_sealed, float* out_plain) {
  const int dim = layout.shape.head_dim;
  float* p = scratch.logits;
  if (!side.sealed) {
    // Rows that no query of the block sees are left alone: they may hold anything.
    const int count = num_tokens - first_token;
    if (num_rows >= kRowsForF32Panel) {
      MultiplyPanel<kRows>(p + first_token, kPageTokens, scratch.value_panel + int64_t{first_token} * dim, dim, count,
                           dim, out_plain, dim, true);
    } else {
      const f16_bits* rows = side.rows + first_token * layout.row_values() + int64_t{kv_head} * dim;
      MultiplyPanel<kRows>(p + first_token, kPageTokens, rows, layout.row_values(), count, dim, out_plain, dim, true);
    }
    return;
  }
  if (HWY_UNLIKELY(side.exact.Any())) {
    const f16_bits* value = side.exact_rows + int64_t{kv_head} * dim;
    for (int t = 0; t < kPageTokens; ++t) {
      if (!side.exact.Test(t)) continue;
      for (int r = 0; r < kRows; ++r) {
        float& weight = p[r * kPageTokens + t];
        if (weight != 0) AddRow(weight, value, dim, out_plain + r * dim);
        weight = 0;
      }
      value += layout.row_values();
    }
  }
  const SealedHead head(layout, side.sealed, kv_head);
  if (layout.recipe.codec != Codec::kAffine) {
    AddRazorValues<kRows>(head, scratch, out_sealed, dim);
  } else if (layout.recipe.axis == Axis::kPerToken) {
    DotScaledK<kRows, true>(head, p, kPageTokens, scratch.scaled, scratch.operand, scratch.dots, out_sealed, dim);
  } else {
    AddChannelScaledValues<kRows>(head, scratch, out_sealed, dim);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_ATTEND_VALUES_INL_H_
