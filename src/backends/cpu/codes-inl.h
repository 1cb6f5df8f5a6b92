// Codes of one row of 64 bytes (kvrazor/layout.h): dword lane i holds k_per_row consecutive elements of the summed dimension;
// element e lies at bit 8 (e % 4) + bits * (e / 4).
#if defined(KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "src/backends/cpu/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using TagI32 = hn::RebindToSigned<TagF32>;

/// Bit of element `e` of a row.
HWY_INLINE int CodeShift(size_t e, int bits) {
  return static_cast<int>(8 * (e % 4) + static_cast<size_t>(bits) * (e / 4));
}

/// rne(clamp(x, 0, largest)): the code as an integer. Rounding after clamping equals clamping after rounding.
HWY_INLINE hn::Vec<TagI32> Code(hn::Vec<TagF32> x, hn::Vec<TagF32> largest) {
  return hn::NearestInt(hn::Min(hn::Max(x, hn::Zero(TagF32())), largest));
}

/// 1 / s, or 0 where s is 0.
HWY_INLINE hn::Vec<TagF32> InverseOrZero(hn::Vec<TagF32> s) {
  const TagF32 d;
  return hn::IfThenElseZero(hn::Gt(s, hn::Zero(d)), hn::Div(hn::Set(d, 1.0f), s));
}

/// Element `e` of each lane, as f32 (a code).
HWY_INLINE hn::Vec<TagF32> CodeAt(hn::Vec<TagI32> word, int shift, hn::Vec<TagI32> mask) {
  const hn::RebindToUnsigned<TagI32> du;
  const auto bits = hn::BitCast(TagI32(), hn::ShiftRightSame(hn::BitCast(du, word), shift));
  return hn::ConvertTo(TagF32(), hn::And(bits, mask));
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
