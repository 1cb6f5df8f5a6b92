#include "src/backends/cpu/rotate.h"

#include <cmath>
#include <string>

#include "kvrazor/error.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/rotate.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "src/backends/cpu/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

constexpr size_t kMaxHeadDim = 4096;

void RotateRows(float* HWY_RESTRICT x, int64_t num_rows, int head_dim) {
  const TagF32 d;
  const size_t n = static_cast<size_t>(head_dim);
  const auto scale = hn::Set(d, 1.0f / std::sqrt(static_cast<float>(head_dim)));
  alignas(64) float row[kMaxHeadDim];  // the caller's rows need not be aligned
  for (int64_t r = 0; r < num_rows; ++r, x += head_dim) {
    HadamardRow(row, n, [&](size_t i) HWY_ATTR { return hn::Mul(hn::LoadU(d, x + i), scale); });
    for (size_t i = 0; i < n; i += hn::Lanes(d)) hn::StoreU(hn::Load(d, row + i), d, x + i);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {

HWY_EXPORT(RotateRows);

void Rotate(float* x, int64_t num_rows, int head_dim) {
  const bool power_of_two = head_dim > 0 && (head_dim & (head_dim - 1)) == 0;
  if (!power_of_two || head_dim < 32 || head_dim > 4096) {
    throw Error("rotate: head_dim=" + std::to_string(head_dim) +
                "; the Hadamard rotation needs a power of two from 32 to 4096.");
  }
  HWY_DYNAMIC_DISPATCH(RotateRows)(x, num_rows, head_dim);
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE
