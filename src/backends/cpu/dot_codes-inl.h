// Integer products of codes with operands in 16-bit fixed point: dots[r][lane] = sum_k code[lane][k] * operand[r][k], exact.
//
// codes    rows of 64 bytes (kvrazor/layout.h), [lane tiles][k blocks][64]; a dword holds k_per_row codes of one lane
// operand  int8 [rows][2][kMaxK]: high and low bytes of q16 = 256 * high + low, both signed and balanced, in order of k
//
// The loops are in dot_tile-inl.h. They take most of the time that attention takes to compile, so each way of storing codes
// has a file of its own that instantiates them (dot_codes_*.cc); callers see the declarations below.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "src/backends/cpu/attend_plan.h"
#include "src/backends/cpu/hadamard-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

using DotI32 = hn::RebindToSigned<TagF32>;
using DotI16 = hn::Repartition<int16_t, DotI32>;
using DotU16 = hn::Repartition<uint16_t, DotI32>;
using DotU32 = hn::RebindToUnsigned<DotI32>;
inline constexpr int kLanes = static_cast<int>(hn::MaxLanes(DotI32()));

/// Operand rows of one pass: what the registers hold.
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
inline constexpr int kPassRows = 6;
#else
inline constexpr int kPassRows = 4;
#endif
static_assert(kPassRows <= kMaxPassRows, "scratch holds kMaxPassRows");

/// Rows of the next pass when `left` remain: equal passes rather than full ones and a rest.
HWY_INLINE int RowsOfPass(int left) {
  const int passes = (left + kPassRows - 1) / kPassRows;
  return (left + passes - 1) / passes;
}

/// Where the codes of one head lie, from the first k wanted on.
struct CodePlanes {
  const uint8_t* low = nullptr;   // rows of 2 or 4 bits
  const uint8_t* high = nullptr;  // 3 bits: rows of high bits
  int64_t low_stride = 0;         // bytes from one lane tile to the next
  int64_t high_stride = 0;
  const uint8_t* table =
      nullptr;  // [16] what a code multiplies with, at most kMaxCodebookStep; nullptr: the code itself
};

// Ways in which rows hold codes; defined in dot_tile-inl.h.
template <int kBits>
struct PlainCodes;  // 2 or 4 bits
struct SplitCodes;  // 3 bits in two planes
template <int kBits>
struct TableCodes;  // either, looked up in a table

#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES("avx512vnni")  // a part of the type, see dot_tile-inl.h
#endif
/// dots [kRows][kMaxK] for lanes [first_lane, first_lane + num_lanes), both multiples of 32.
///   num_k  a multiple of 32
template <class Codes, int kRows>
void DotLanes(const CodePlanes& planes, int first_lane, int num_lanes, int num_k, const int8_t* operand, int32_t* dots);
#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif

/// DotLanes with the width of the codes chosen at run time.
template <int kRows>
HWY_INLINE void DotCodes(int bits, const CodePlanes& planes, int first_lane, int num_lanes, int num_k,
                         const int8_t* operand, int32_t* dots) {
  if (HWY_UNLIKELY(planes.table != nullptr)) {
    switch (bits) {
      case 2: return DotLanes<TableCodes<2>, kRows>(planes, first_lane, num_lanes, num_k, operand, dots);
      case 3: return DotLanes<TableCodes<3>, kRows>(planes, first_lane, num_lanes, num_k, operand, dots);
      default: return DotLanes<TableCodes<4>, kRows>(planes, first_lane, num_lanes, num_k, operand, dots);
    }
  }
  switch (bits) {
    case 2: return DotLanes<PlainCodes<2>, kRows>(planes, first_lane, num_lanes, num_k, operand, dots);
    case 3: return DotLanes<SplitCodes, kRows>(planes, first_lane, num_lanes, num_k, operand, dots);
    default: return DotLanes<PlainCodes<4>, kRows>(planes, first_lane, num_lanes, num_k, operand, dots);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
