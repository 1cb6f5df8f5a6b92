// Codes of one row of 64 bytes (kvrazor/layout.h): dword lane i holds k_per_row consecutive elements of the summed dimension;
// element e lies at bit 8 (e % 4) + bits * (e / 4). 3-bit codes: two bits in such rows, the third in rows of 1 bit.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/highway.h"
#include "kvrazor/layout.h"
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

/// The rows of one vector of lanes of a tile, from its first lane's dword on.
struct CodeRows {
  int32_t* low = nullptr;
  int32_t* high = nullptr;  // 3 bits
  int row_bits = 2;

  static CodeRows Of(const PageLayout& layout, std::byte* head, size_t tile, size_t lane) {
    const size_t k = static_cast<size_t>(layout.num_k());
    const size_t low_words = k * static_cast<size_t>(layout.row_bits()) / 32 * 16;
    CodeRows rows;
    rows.row_bits = layout.row_bits();
    rows.low = reinterpret_cast<int32_t*>(head + layout.codes_at) + tile * low_words + lane;
    if (layout.high_codes_at >= 0)
      rows.high = reinterpret_cast<int32_t*>(head + layout.high_codes_at) + tile * (k / 2) + lane;
    return rows;
  }
};

/// Stores the codes of elements first .. first + 31 of the lanes, first a multiple of 32.
///   code_of(e)  the code of element e
template <class CodeOf>
HWY_INLINE void StoreCodes(const CodeRows& rows, size_t first, hn::Vec<TagI32> kept, CodeOf code_of) {
  const TagI32 di;
  const size_t per_row = static_cast<size_t>(32 / rows.row_bits);
  const auto mask = hn::Set(di, (1 << rows.row_bits) - 1);
  auto high = hn::Zero(di);
  for (size_t e0 = 0; e0 < 32; e0 += per_row) {
    auto low = hn::Zero(di);
    for (size_t e = 0; e < per_row; ++e) {
      const auto code = code_of(first + e0 + e);
      low = hn::Or(low, hn::ShiftLeftSame(hn::And(code, mask), CodeShift(e, rows.row_bits)));
      if (rows.high)
        high = hn::Or(high, hn::ShiftLeftSame(hn::ShiftRightSame(code, rows.row_bits), CodeShift(e0 + e, 1)));
    }
    hn::Store(hn::And(low, kept), di, rows.low + (first + e0) / per_row * 16);
  }
  if (rows.high) hn::Store(hn::And(high, kept), di, rows.high + first / 32 * 16);
}

/// Element `e` of each lane, as f32 (a code).
HWY_INLINE hn::Vec<TagF32> LoadCode(const CodeRows& rows, size_t e) {
  const TagI32 di;
  const hn::RebindToUnsigned<TagI32> du;
  const size_t per_row = static_cast<size_t>(32 / rows.row_bits);
  const auto field = [&](const int32_t* words, size_t at, int bits) HWY_ATTR {
    const auto shifted = hn::ShiftRightSame(hn::BitCast(du, hn::Load(di, words)), CodeShift(at, bits));
    return hn::And(hn::BitCast(di, shifted), hn::Set(di, (1 << bits) - 1));
  };
  auto code = field(rows.low + e / per_row * 16, e % per_row, rows.row_bits);
  if (rows.high) code = hn::Or(code, hn::ShiftLeft<2>(field(rows.high + e / 32 * 16, e % 32, 1)));
  return hn::ConvertTo(TagF32(), code);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_CODES_INL_H_
