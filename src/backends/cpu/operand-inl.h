// Operands of the integer products: f32 rows rounded to 16-bit fixed point, one scale a row.
//   q16 = round(x * 32512 / absmax) = 256 * high + low,  high in [-127, 127], low in [-128, 127]
// The rounding error is at most absmax / 65024, f32's level for sums of this length; both bytes are signed, as the byte
// products want them.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_OPERAND_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_OPERAND_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_OPERAND_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_OPERAND_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "src/backends/cpu/attend_plan.h"
#include "src/backends/cpu/dot_codes-inl.h"
#include "src/core/half.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using VecF32 = hn::Vec<TagF32>;

inline constexpr float kOperandMax = 32512.0f;  // 127 * 256

HWY_INLINE VecF32 LoadF16(const f16_bits* p) {
  const hn::Rebind<hwy::float16_t, TagF32> dh;
  return hn::PromoteTo(TagF32(), hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(p)));
}
HWY_INLINE VecF32 LoadAsF32(const f16_bits* p) { return LoadF16(p); }
HWY_INLINE VecF32 LoadAsF32(const float* p) { return hn::LoadU(TagF32(), p); }

/// e5m3: the 8 bits below the sign of an f16.
HWY_INLINE VecF32 LoadE5M3(const uint8_t* p) {
  const hn::Rebind<uint8_t, TagF32> d8;
  const hn::Rebind<uint16_t, TagF32> d16;
  const hn::Rebind<hwy::float16_t, TagF32> dh;
  return hn::PromoteTo(TagF32(), hn::BitCast(dh, hn::ShiftLeft<7>(hn::PromoteTo(d16, hn::LoadU(d8, p)))));
}

/// e3m5 over `base`: the 8 bits lie at f32's 3 lowest exponent and 5 highest mantissa bits; 0 is 0.
HWY_INLINE VecF32 LoadE3M5(const uint8_t* p, VecF32 base) {
  const hn::Rebind<uint8_t, TagF32> d8;
  const DotI32 di;
  const auto byte = hn::PromoteTo(di, hn::LoadU(d8, p));
  const auto bits = hn::Add(hn::ShiftLeft<18>(byte), hn::Set(di, (127 - 7) << 23));
  return hn::IfThenZeroElse(hn::RebindMask(TagF32(), hn::Eq(byte, hn::Zero(di))),
                            hn::Mul(hn::BitCast(TagF32(), bits), base));
}

HWY_INLINE float Largest(VecF32 v) { return hn::GetLane(hn::MaxOfLanes(TagF32(), v)); }
HWY_INLINE float Total(VecF32 v) { return hn::GetLane(hn::SumOfLanes(TagF32(), v)); }

/// Two vectors of int32 as one of int16, in order.
HWY_INLINE hn::Vec<DotI16> Narrow(hn::Vec<DotI32> low, hn::Vec<DotI32> high) {
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  return hn::Vec<DotI16>{_mm512_permutexvar_epi64(order, _mm512_packs_epi32(low.raw, high.raw))};
#elif HWY_TARGET == HWY_AVX2
  return hn::Vec<DotI16>{_mm256_permute4x64_epi64(_mm256_packs_epi32(low.raw, high.raw), 0xd8)};
#else
  return hn::ReorderDemote2To(DotI16(), low, high);  // one block: nothing is reordered
#endif
}

/// Rounds x [num_k] to bytes at operand (high) and operand + kMaxK (low). Returns the sum of the q16.
///   inverse  kOperandMax / absmax of x, or 0
HWY_INLINE int32_t RoundOperand(const float* HWY_RESTRICT x, int num_k, float inverse, int8_t* HWY_RESTRICT operand) {
  const TagF32 df;
  const DotI32 di;
  const DotI16 d16;
  const hn::Rebind<int8_t, DotI16> d8;
  // Adding 1.5 * 2^23 rounds to an integer (ties to even), which then lies in the low bits.
  const auto magic = hn::Set(df, 12582912.0f);
  const auto magic_bits = hn::BitCast(di, magic);
  const auto scale = hn::Set(df, inverse);
  auto sum = hn::Zero(di);
  for (int k = 0; k < num_k; k += 2 * kLanes) {
    const auto q0 = hn::Sub(hn::BitCast(di, hn::MulAdd(hn::Load(df, x + k), scale, magic)), magic_bits);
    const auto q1 = hn::Sub(hn::BitCast(di, hn::MulAdd(hn::Load(df, x + k + kLanes), scale, magic)), magic_bits);
    sum = hn::Add(sum, hn::Add(q0, q1));
    const auto q = Narrow(q0, q1);
    const auto high = hn::ShiftRight<8>(hn::Add(q, hn::Set(d16, 128)));
    const auto low = hn::Sub(q, hn::ShiftLeft<8>(high));
    hn::StoreU(hn::DemoteTo(d8, high), d8, operand + k);
    hn::StoreU(hn::DemoteTo(d8, low), d8, operand + kMaxK + k);
  }
  return hn::GetLane(hn::SumOfLanes(di, sum));
}

/// 1 / scale of an operand, or 0 for one of zeros (or of values too small to have an inverse).
HWY_INLINE float OperandInverse(float absmax) { return absmax > 1e-30f ? kOperandMax / absmax : 0.0f; }
HWY_INLINE float OperandScale(float absmax) { return absmax > 1e-30f ? absmax * (1.0f / kOperandMax) : 0.0f; }

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_OPERAND_INL_H_
