// Products of f32 operands with sealed pages. The codecs reduce to two forms, the same for keys (lanes = tokens, k = channels)
// and values (lanes = channels, k = tokens):
//
//   parameters along k     out[r][lane] = sum_k (x[r][k] * scale[g][k]) * code + sum_k x[r][k] * offset[g][k],  g = lane / group
//                          (affine keys per channel, affine values per token): an operand for each group of lanes
//   parameters along lanes out[r][lane] = sum_g scale[g][lane] * (sum_k in g x[r][k] * code) + offset[g][lane] * sum_k in g x[r][k]
//                          (affine keys per token, affine values per channel, razor): one operand for all lanes
//
// The rounding of the operand (2^-16 of its largest value) is the only error beside f32 sums.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_SEALED_DOT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_SEALED_DOT_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_SEALED_DOT_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_SEALED_DOT_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "src/backends/cpu/operand-inl.h"
#include "src/codecs/codebook.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// What the middle of a side's levels is in units of its codes (of its codebook's steps).
HWY_INLINE float MiddleCode(const SideRecipe& recipe) {
  if (recipe.codec == Codec::kCodebook) return GaussianCodebook(recipe.bits).middle;
  return 0.5f * static_cast<float>((1 << recipe.bits) - 1);
}

/// One head's block of a sealed page.
struct SealedHead {
  const PageLayout* layout = nullptr;
  const std::byte* page = nullptr;
  const std::byte* block = nullptr;
  int head = 0;

  SealedHead(const PageLayout& l, const std::byte* sealed, int h)
      : layout(&l), page(sealed), block(sealed + l.heads_at + l.head_bytes * h), head(h) {}

  /// The codes from k = first_k on, a multiple of 32.
  CodePlanes codes(int first_k) const {
    const int64_t rows = layout->num_k() / layout->k_per_row();
    const int64_t high_rows = layout->num_k() / 32;
    const uint8_t* table =
        layout->recipe.codec == Codec::kCodebook ? GaussianCodebook(layout->recipe.bits).steps.data() : nullptr;
    return {u8(layout->codes_at) + int64_t{first_k} / layout->k_per_row() * 64,
            layout->high_codes_at < 0 ? nullptr : u8(layout->high_codes_at) + int64_t{first_k} / 32 * 64, rows * 64,
            high_rows * 64, table};
  }
  const uint8_t* u8(int64_t at) const { return reinterpret_cast<const uint8_t*>(block + at); }
  const int8_t* i8(int64_t at) const { return reinterpret_cast<const int8_t*>(block + at); }
  const f16_bits* f16(int64_t at) const { return reinterpret_cast<const f16_bits*>(block + at); }
};

/// scaled[r][k] = x[r][k] * scale[k];  bias[r] = sum_k x[r][k] * offset[k];  largest[r] = max |scaled|
template <int kRows>
HWY_INLINE void ScaleOperands(const float* HWY_RESTRICT x, int64_t x_stride, int num_k,
                              const f16_bits* HWY_RESTRICT scale, const f16_bits* HWY_RESTRICT offset,
                              float* HWY_RESTRICT scaled, float (&bias)[kRows], float (&largest)[kRows]) {
  const TagF32 d;
  VecF32 sum[kRows], top[kRows];
  for (int r = 0; r < kRows; ++r) sum[r] = top[r] = hn::Zero(d);
  for (int k = 0; k < num_k; k += kLanes) {
    const auto s = LoadF16(scale + k);
    const auto o = LoadF16(offset + k);
    for (int r = 0; r < kRows; ++r) {
      const auto v = hn::Load(d, x + r * x_stride + k);
      const auto y = hn::Mul(v, s);
      hn::Store(y, d, scaled + r * kMaxK + k);
      top[r] = hn::Max(top[r], hn::Abs(y));
      sum[r] = hn::MulAdd(v, o, sum[r]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    bias[r] = Total(sum[r]);
    largest[r] = Largest(top[r]);
  }
}

/// Affine codecs with parameters along k.
///   x    [kRows][num_k], rows x_stride apart;   out  [kRows][num_lanes], rows out_stride apart, written or added to
template <int kRows, bool kAdd>
HWY_NOINLINE void DotScaledK(const SealedHead& head, const float* x, int64_t x_stride, float* scaled, int8_t* operand,
                             int32_t* dots, float* out, int64_t out_stride) {
  const TagF32 d;
  const PageLayout& layout = *head.layout;
  const int num_k = layout.num_k();
  const int group = layout.recipe.group_size;
  for (int lane = 0; lane < layout.num_lanes(); lane += group) {
    const int64_t at = int64_t{lane / group} * num_k;
    float bias[kRows], largest[kRows];
    ScaleOperands<kRows>(x, x_stride, num_k, head.f16(layout.scale_at) + at, head.f16(layout.offset_at) + at, scaled,
                         bias, largest);
    for (int r = 0; r < kRows; ++r) {
      RoundOperand(scaled + r * kMaxK, num_k, OperandInverse(largest[r]), operand + r * 2 * kMaxK);
    }
    DotCodes<kRows>(layout.recipe.bits, head.codes(0), lane, group, num_k, operand, dots);
    for (int r = 0; r < kRows; ++r) {
      const auto factor = hn::Set(d, OperandScale(largest[r]));
      const auto base = hn::Set(d, bias[r]);
      for (int i = lane; i < lane + group; i += kLanes) {
        const auto dot = hn::ConvertTo(d, hn::Load(DotI32(), dots + r * kMaxK + i));
        auto y = hn::MulAdd(dot, factor, base);
        if (kAdd) y = hn::Add(y, hn::Load(d, out + r * out_stride + i));
        hn::Store(y, d, out + r * out_stride + i);
      }
    }
  }
}

/// Affine codecs with parameters along the lanes.
///   operand    [kRows][2][kMaxK] of x, with operand_scale [kRows]
///   group_sum  [kRows] rows sum_stride apart: sums of x over each group of k
template <int kRows, bool kAdd>
HWY_NOINLINE void DotScaledLanes(const SealedHead& head, const int8_t* operand, const float* operand_scale,
                                 const float* group_sum, int64_t sum_stride, int32_t* dots, float* out,
                                 int64_t out_stride) {
  const TagF32 d;
  const PageLayout& layout = *head.layout;
  const int num_lanes = layout.num_lanes();
  const int group = layout.recipe.group_size;
  for (int g = 0; g < layout.num_k() / group; ++g) {
    const f16_bits* scale = head.f16(layout.scale_at) + int64_t{g} * num_lanes;
    const f16_bits* offset = head.f16(layout.offset_at) + int64_t{g} * num_lanes;
    DotCodes<kRows>(layout.recipe.bits, head.codes(g * group), 0, num_lanes, group, operand + g * group, dots);
    for (int i = 0; i < num_lanes; i += kLanes) {
      const auto s = LoadF16(scale + i);
      const auto o = LoadF16(offset + i);
      for (int r = 0; r < kRows; ++r) {
        const auto dot =
            hn::Mul(hn::ConvertTo(d, hn::Load(DotI32(), dots + r * kMaxK + i)), hn::Set(d, operand_scale[r]));
        auto y = hn::MulAdd(dot, s, hn::Mul(o, hn::Set(d, group_sum[r * sum_stride + g])));
        if (kAdd || g > 0) y = hn::Add(y, hn::Load(d, out + r * out_stride + i));
        hn::Store(y, d, out + r * out_stride + i);
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_SEALED_DOT_INL_H_
