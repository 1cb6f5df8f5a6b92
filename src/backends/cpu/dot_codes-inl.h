// Integer products of codes with operands in 16-bit fixed point: dots[r][lane] = sum_k code[lane][k] * operand[r][k], exact.
//
// codes    rows of 64 bytes (kvrazor/layout.h), [lane tiles][k blocks][64]; a dword holds k_per_row codes of one lane
// operand  int8 [rows][2][kMaxK]: high and low bytes of q16 = 256 * high + low, both signed and balanced, in order of k
//
// One row of 64 bytes at 2 bits, 4 operand rows (AVX3_DL): 1 load, 3 shifts, 4 ands, then 4 classes x 4 rows x (high, low)
// = 32 vpdpbusd, each 64 products, whose operand is a broadcast dword. Two lane tiles go together, so that 16 (6 rows: 24)
// accumulators hide the latency and a broadcast serves two instructions; the codes are decoded once for all rows of a pass.
//
// Targets without byte dot products add pairs to 16 bits (maddubs or its portable twin) and widen before these overflow.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

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

#if HWY_TARGET == HWY_AVX3_DL
HWY_PUSH_ATTRIBUTES("avx512vnni")  // part of the target, but Highway 1.0's attributes name avxvnni in its place
#endif

// sum += codes * operand over the 4 bytes of a dword (native) or over pairs of bytes into 16 bits.
#if HWY_TARGET == HWY_AVX3_DL
inline constexpr bool kWideSums = true;
using DotSum = hn::Vec<DotI32>;
HWY_INLINE DotSum DotZero() { return hn::Zero(DotI32()); }
HWY_INLINE DotSum DotAdd(DotSum sum, hn::Vec<DotU32> codes, hn::Vec<DotI32> operand) {
  return DotSum{_mm512_dpbusd_epi32(sum.raw, codes.raw, operand.raw)};
}
HWY_INLINE hn::Vec<DotI32> DotWiden(DotSum sum) { return sum; }
#else
inline constexpr bool kWideSums = false;
using DotSum = hn::Vec<DotI16>;
HWY_INLINE DotSum DotZero() { return hn::Zero(DotI16()); }
HWY_INLINE DotSum DotAdd(DotSum sum, hn::Vec<DotU32> codes, hn::Vec<DotI32> operand) {
#if HWY_TARGET == HWY_AVX3
  return hn::Add(sum, DotSum{_mm512_maddubs_epi16(codes.raw, operand.raw)});
#elif HWY_TARGET == HWY_AVX2
  return hn::Add(sum, DotSum{_mm256_maddubs_epi16(codes.raw, operand.raw)});
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  return hn::Add(sum, DotSum{_mm_maddubs_epi16(codes.raw, operand.raw)});
#else
  const DotI16 d16;
  const auto code_pairs = hn::BitCast(d16, codes);
  const auto operand_pairs = hn::BitCast(d16, operand);
  const auto even =
      hn::Mul(hn::And(code_pairs, hn::Set(d16, 0x00ff)), hn::ShiftRight<8>(hn::ShiftLeft<8>(operand_pairs)));
  const auto odd =
      hn::Mul(hn::BitCast(d16, hn::ShiftRight<8>(hn::BitCast(DotU16(), codes))), hn::ShiftRight<8>(operand_pairs));
  return hn::Add(sum, hn::Add(even, odd));
#endif
}
HWY_INLINE hn::Vec<DotI32> DotWiden(DotSum sum) {
#if HWY_TARGET == HWY_AVX3
  return hn::Vec<DotI32>{_mm512_madd_epi16(sum.raw, _mm512_set1_epi16(1))};
#elif HWY_TARGET == HWY_AVX2
  return hn::Vec<DotI32>{_mm256_madd_epi16(sum.raw, _mm256_set1_epi16(1))};
#elif HWY_TARGET == HWY_SSE4 || HWY_TARGET == HWY_SSSE3
  return hn::Vec<DotI32>{_mm_madd_epi16(sum.raw, _mm_set1_epi16(1))};
#else
  const auto pairs = hn::BitCast(DotI32(), sum);
  return hn::Add(hn::ShiftRight<16>(hn::ShiftLeft<16>(pairs)), hn::ShiftRight<16>(pairs));
#endif
}
#endif

/// Rows of codes whose pair sums fit 16 bits: a step adds at most 2 * (2^bits - 1) * 128 in magnitude.
template <int kBits>
constexpr int BlocksPerRun() {
  constexpr int kSteps = 32767 / (2 * ((1 << kBits) - 1) * 128);
  return kSteps / (8 / kBits);
}
static_assert(BlocksPerRun<2>() >= 1 && BlocksPerRun<4>() >= 1, "a row of codes must fit one run");

/// One pass over kVecs vectors of lanes. kSplit sums for each (row, byte, vector), one for every kSplit-th class of codes:
/// more independent chains where there are few rows.
///   rows[v]  code rows of vector v, at its first dword
template <int kBits, int kRows, int kVecs, int kSplit>
HWY_INLINE void DotTile(const uint8_t* const (&rows)[kVecs], int num_blocks, const int8_t* HWY_RESTRICT operand,
                        int32_t* HWY_RESTRICT dots) {
  constexpr int kClasses = 8 / kBits;
  const DotI32 di;
  const DotU32 du;
  const auto mask = hn::Set(du, 0x01010101u * ((1u << kBits) - 1));

  hn::Vec<DotI32> total[kRows][2][kVecs];
  if constexpr (!kWideSums) {
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < 2; ++b) {
        for (int v = 0; v < kVecs; ++v) total[r][b][v] = hn::Zero(di);
      }
    }
  }
  for (int first = 0; first < num_blocks;) {
    const int end =
        kWideSums || num_blocks - first < BlocksPerRun<kBits>() ? num_blocks : first + BlocksPerRun<kBits>();
    DotSum sum[kSplit][kRows][2][kVecs];
    for (int s = 0; s < kSplit; ++s) {
      for (int r = 0; r < kRows; ++r) {
        for (int b = 0; b < 2; ++b) {
          for (int v = 0; v < kVecs; ++v) sum[s][r][b][v] = DotZero();
        }
      }
    }
    for (int block = first; block < end; ++block) {
      hn::Vec<DotU32> words[kVecs];
      for (int v = 0; v < kVecs; ++v)
        words[v] = hn::BitCast(du, hn::Load(hn::Repartition<uint8_t, DotU32>(), rows[v] + block * 64));
      for (int j = 0; j < kClasses; ++j) {
        hn::Vec<DotU32> codes[kVecs];
        for (int v = 0; v < kVecs; ++v) {
          codes[v] = hn::And(words[v], mask);
          words[v] = hn::ShiftRight<kBits>(words[v]);
        }
        const int8_t* at = operand + (block * kClasses + j) * 4;
        for (int r = 0; r < kRows; ++r) {
          for (int b = 0; b < 2; ++b) {
            int32_t quad;
            std::memcpy(&quad, at + (2 * r + b) * kMaxK, sizeof(quad));
            const auto wide = hn::Set(di, quad);
            for (int v = 0; v < kVecs; ++v) sum[j % kSplit][r][b][v] = DotAdd(sum[j % kSplit][r][b][v], codes[v], wide);
          }
        }
      }
    }
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < 2; ++b) {
        for (int v = 0; v < kVecs; ++v) {
          auto widened = DotWiden(sum[0][r][b][v]);
          for (int s = 1; s < kSplit; ++s) widened = hn::Add(widened, DotWiden(sum[s][r][b][v]));
          total[r][b][v] = kWideSums ? widened : hn::Add(total[r][b][v], widened);
        }
      }
    }
    first = end;
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) {
      hn::Store(hn::Add(hn::ShiftLeft<8>(total[r][0][v]), total[r][1][v]), di, dots + r * kMaxK + v * kLanes);
    }
  }
}

/// dots [kRows][kMaxK] for lanes [first_lane, first_lane + num_lanes), both multiples of 32.
///   codes        of the head, first k block wanted
///   tile_stride  bytes from one lane tile to the next
template <int kBits, int kRows>
HWY_NOINLINE void DotLanes(const uint8_t* codes, int64_t tile_stride, int first_lane, int num_lanes, int num_blocks,
                           const int8_t* operand, int32_t* dots) {
  // 8 sums or more in flight, and no more registers than the target has.
#if HWY_TARGET == HWY_AVX3_DL
  constexpr int kVecs = 2;
#else
  constexpr int kVecs = kRows == 1 || kPassRows == 6 ? 2 : 1;
#endif
  constexpr int kChains = 2 * kRows * kVecs;
  constexpr int kSplit = kChains >= 8 ? 1 : kChains == 4 && kBits == 2 ? 4 : 2;
  for (int lane = first_lane; lane < first_lane + num_lanes; lane += kVecs * kLanes) {
    const uint8_t* rows[kVecs];
    for (int v = 0; v < kVecs; ++v) {
      const int at = lane + v * kLanes;
      rows[v] = codes + (at / 16) * tile_stride + (at % 16) * 4;
    }
    DotTile<kBits, kRows, kVecs, kSplit>(rows, num_blocks, operand, dots + lane);
  }
}

#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif

/// DotLanes with the width of the codes chosen at run time.
template <int kRows>
HWY_INLINE void DotCodes(int bits, const uint8_t* codes, int64_t tile_stride, int first_lane, int num_lanes,
                         int num_blocks, const int8_t* operand, int32_t* dots) {
  if (bits == 2) {
    DotLanes<2, kRows>(codes, tile_stride, first_lane, num_lanes, num_blocks, operand, dots);
  } else {
    DotLanes<4, kRows>(codes, tile_stride, first_lane, num_lanes, num_blocks, operand, dots);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_DOT_CODES_INL_H_
