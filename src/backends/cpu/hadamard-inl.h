// Sylvester Hadamard rotation of one row, in place: x <- scale * H_n x with H_n of +-1 (scale = 1/sqrt(n) makes it orthogonal).
//
//   strides 1 .. N/2  inside a vector of N lanes: partner + x * (+1 | -1)        one shuffle and one fma a stage
//   strides N .. n/2  between vectors, two stages a pass (radix 4)               n/N loads and stores a pass
// Every sum has the same operands and order on every target, so the result is the same to the last bit.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_HADAMARD_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_HADAMARD_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_HADAMARD_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_HADAMARD_INL_H_
#endif

#include <cstddef>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Vectors of f32; a row of codes has 16 dwords, so more lanes than that would not help.
using TagF32 = hn::CappedTag<float, 16>;

/// The last stages, between vectors (or all of them where a vector is one lane).
HWY_INLINE void HadamardAcross(float* HWY_RESTRICT x, size_t n) {
  const TagF32 d;
  const size_t lanes = hn::Lanes(d);
  size_t stride = lanes;
  for (; stride * 4 <= n; stride *= 4) {
    for (size_t base = 0; base < n; base += 4 * stride) {
      for (size_t i = base; i < base + stride; i += lanes) {
        const auto x0 = hn::Load(d, x + i);
        const auto x1 = hn::Load(d, x + i + stride);
        const auto x2 = hn::Load(d, x + i + 2 * stride);
        const auto x3 = hn::Load(d, x + i + 3 * stride);
        const auto sum01 = hn::Add(x0, x1);
        const auto dif01 = hn::Sub(x0, x1);
        const auto sum23 = hn::Add(x2, x3);
        const auto dif23 = hn::Sub(x2, x3);
        hn::Store(hn::Add(sum01, sum23), d, x + i);
        hn::Store(hn::Add(dif01, dif23), d, x + i + stride);
        hn::Store(hn::Sub(sum01, sum23), d, x + i + 2 * stride);
        hn::Store(hn::Sub(dif01, dif23), d, x + i + 3 * stride);
      }
    }
  }
  if (stride < n) {
    for (size_t i = 0; i < stride; i += lanes) {
      const auto x0 = hn::Load(d, x + i);
      const auto x1 = hn::Load(d, x + i + stride);
      hn::Store(hn::Add(x0, x1), d, x + i);
      hn::Store(hn::Sub(x0, x1), d, x + i + stride);
    }
  }
}

#if HWY_TARGET != HWY_SCALAR
/// Signs of a stage inside a vector: +1 for lanes with a clear `stride` bit, else -1.
HWY_INLINE hn::Vec<TagF32> HadamardSigns(int stride) {
  const TagF32 d;
  const hn::RebindToSigned<TagF32> di;
  const auto bit = hn::And(hn::Iota(di, 0), hn::Set(di, stride));
  return hn::IfThenElse(hn::RebindMask(d, hn::Eq(bit, hn::Zero(di))), hn::Set(d, 1.0f), hn::Set(d, -1.0f));
}
#endif

/// x: 64-byte aligned, n a power of two from 32 up. `load(i)` gives the vector at index i (times whatever the caller wants).
template <class LoadFn>
HWY_INLINE void HadamardRow(float* HWY_RESTRICT x, size_t n, LoadFn&& load) {
  const TagF32 d;
  const size_t lanes = hn::Lanes(d);
#if HWY_TARGET == HWY_SCALAR
  for (size_t i = 0; i < n; i += lanes) hn::Store(load(i), d, x + i);
#else
  const auto signs1 = HadamardSigns(1);
  const auto signs2 = HadamardSigns(2);
  const auto signs4 = HadamardSigns(4);
  const auto signs8 = HadamardSigns(8);
  for (size_t i = 0; i < n; i += lanes) {
    auto v = load(i);
    v = hn::MulAdd(v, signs1, hn::Shuffle2301(v));
    v = hn::MulAdd(v, signs2, hn::Shuffle1032(v));
    if (lanes >= 8) v = hn::MulAdd(v, signs4, hn::SwapAdjacentBlocks(v));
    if (lanes >= 16) v = hn::MulAdd(v, signs8, hn::ConcatLowerUpper(d, v, v));
    hn::Store(v, d, x + i);
  }
#endif
  HadamardAcross(x, n);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_HADAMARD_INL_H_
