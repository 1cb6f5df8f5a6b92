// The loops of dot_codes-inl.h.
//
// One row of 64 bytes at 2 bits, 4 operand rows (AVX3_DL): 1 load, 3 shifts, 4 ands, then 4 classes x 4 rows x (high, low)
// = 32 vpdpbusd, each 64 products, whose operand is a broadcast dword. Two lane tiles go together, so that 16 (6 rows: 24)
// accumulators hide the latency and a broadcast serves two instructions; the codes are decoded once for all rows of a pass.
//
// Targets without byte dot products add pairs to 16 bits (maddubs or its portable twin) and widen before these overflow. NEON
// has byte dot products where the compiler may use them (-march=armv8.2-a+dotprod or newer; all of Apple's).
#if defined(KVRAZOR_SRC_BACKENDS_CPU_DOT_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_DOT_TILE_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_DOT_TILE_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_DOT_TILE_INL_H_
#endif

#include <cstddef>
#include <cstdint>
#include <cstring>

#include "hwy/highway.h"
#include "src/backends/cpu/dot_codes-inl.h"
#include "src/codecs/codebook.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

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
#elif HWY_TARGET == HWY_NEON && defined(__ARM_FEATURE_DOTPROD)
inline constexpr bool kWideSums = true;
using DotSum = hn::Vec<DotI32>;
static_assert(kMaxCodebookStep <= 127, "codes are multiplied as signed bytes");
HWY_INLINE DotSum DotZero() { return hn::Zero(DotI32()); }
HWY_INLINE DotSum DotAdd(DotSum sum, hn::Vec<DotU32> codes, hn::Vec<DotI32> operand) {
  return DotSum{vdotq_s32(sum.raw, vreinterpretq_s8_u32(codes.raw), vreinterpretq_s8_s32(operand.raw))};
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
#elif HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64
  static_assert(kMaxCodebookStep <= 127, "codes are multiplied as signed bytes");
  const int8x16_t a = vreinterpretq_s8_u32(codes.raw);
  const int8x16_t b = vreinterpretq_s8_s32(operand.raw);
  const int16x8_t low = vmull_s8(vget_low_s8(a), vget_low_s8(b));
  return DotSum{vaddq_s16(sum.raw, vpaddq_s16(low, vmull_high_s8(a, b)))};
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
#elif HWY_TARGET == HWY_NEON
  return hn::Vec<DotI32>{vpaddlq_s16(sum.raw)};
#else
  const auto pairs = hn::BitCast(DotI32(), sum);
  return hn::Add(hn::ShiftRight<16>(hn::ShiftLeft<16>(pairs)), hn::ShiftRight<16>(pairs));
#endif
}
#endif

using CodeVec = hn::Vec<DotU32>;

HWY_INLINE CodeVec LoadRow(const uint8_t* row) {
  return hn::BitCast(DotU32(), hn::Load(hn::Repartition<uint8_t, DotU32>(), row));
}
/// First dword of a lane in a plane.
HWY_INLINE const uint8_t* LaneAt(const uint8_t* plane, int64_t stride, int lane) {
  return plane + (lane / 16) * stride + (lane % 16) * 4;
}

// A reader of codes gives those of one vector of lanes, four consecutive k (a dword) at a time: Start, then for each step
// StartStep, kStepRows times {StartRow, kRowClasses times Next}. Constructors are spelled out: GCC compiles implicit ones
// without the target's attributes, and vectors of NEON then fail to inline theirs.

template <int kBits>
struct PlainCodes {
  static constexpr int kLargest = (1 << kBits) - 1;
  static constexpr int kRowClasses = 8 / kBits;
  static constexpr int kStepRows = 1;

  HWY_INLINE PlainCodes() {}
  HWY_INLINE void Start(const CodePlanes& planes, int lane) { rows = LaneAt(planes.low, planes.low_stride, lane); }
  HWY_INLINE void StartStep(int) {}
  HWY_INLINE void StartRow(int row) { words = LoadRow(rows + row * 64); }
  HWY_INLINE CodeVec Next() {
    const CodeVec codes = hn::And(words, hn::Set(DotU32(), 0x01010101u * kLargest));
    words = hn::ShiftRight<kBits>(words);
    return codes;
  }

  const uint8_t* rows;
  CodeVec words;
};

/// A step is a row of high bits and the two rows of low bits that it belongs to. The high bits pass bit 2 of their bytes one
/// class after the other; what a shift carries over from the neighbouring byte never lies there.
struct SplitCodes {
  static constexpr int kLargest = 7;
  static constexpr int kRowClasses = 4;
  static constexpr int kStepRows = 2;

  HWY_INLINE SplitCodes() {}
  HWY_INLINE void Start(const CodePlanes& planes, int lane) {
    low_rows = LaneAt(planes.low, planes.low_stride, lane);
    high_rows = LaneAt(planes.high, planes.high_stride, lane);
  }
  HWY_INLINE void StartStep(int step) {
    rest = LoadRow(high_rows + step * 64);
    high = hn::ShiftLeft<2>(rest);
  }
  HWY_INLINE void StartRow(int row) {
    low = LoadRow(low_rows + row * 64);
    if (row % 2 == 1) high = hn::ShiftRight<2>(rest);  // classes 4 .. 7: the left shift moved them to the next byte
  }
  HWY_INLINE CodeVec Next() {
    const CodeVec codes = hn::OrAnd(hn::And(low, hn::Set(DotU32(), 0x03030303u)), high, hn::Set(DotU32(), 0x04040404u));
    low = hn::ShiftRight<2>(low);
    high = hn::ShiftRight<1>(high);
    return codes;
  }

  const uint8_t* low_rows;
  const uint8_t* high_rows;
  CodeVec low, high, rest;
};

/// Codes looked up in a table of 16 bytes. Entries are large, so that where sums have 16 bits fewer classes make a row: half
/// or a quarter of the 64 bytes.
template <int kBits>
struct TableCodes {
  static constexpr int kRowBits = kBits == 3 ? 2 : kBits;
  static constexpr int kAllClasses = 8 / kRowBits;  // of 64 bytes
  static constexpr int kLargest = kMaxCodebookStep;
  static constexpr int kRowClasses = kWideSums ? kAllClasses : 2;
  static constexpr int kStepRows = 1;
  static constexpr int kParts = kAllClasses / kRowClasses;

  HWY_INLINE TableCodes() {}
  HWY_INLINE void Start(const CodePlanes& planes, int lane) {
    low_rows = LaneAt(planes.low, planes.low_stride, lane);
    if constexpr (kBits == 3) high_rows = LaneAt(planes.high, planes.high_stride, lane);
    table = hn::LoadDup128(hn::Repartition<uint8_t, DotU32>(), planes.table);
  }
  HWY_INLINE void StartStep(int) {}
  HWY_INLINE void StartRow(int row) {
    low = LoadRow(low_rows + row / kParts * 64);
    if constexpr (kParts > 1) low = hn::ShiftRightSame(low, row % kParts * kRowClasses * kRowBits);
    if constexpr (kBits == 3) {  // 8 classes of high bits; those of this row first
      constexpr int kRowsPerHigh = 8 / kRowClasses;
      high = hn::ShiftRightSame(LoadRow(high_rows + row / kRowsPerHigh * 64), row % kRowsPerHigh * kRowClasses);
    }
  }
  HWY_INLINE CodeVec Next() {
    auto codes = hn::And(low, hn::Set(DotU32(), 0x01010101u * ((1u << kRowBits) - 1)));
    low = hn::ShiftRight<kRowBits>(low);
    if constexpr (kBits == 3) {
      codes = hn::Or(codes, hn::ShiftLeft<2>(hn::And(high, hn::Set(DotU32(), 0x01010101u))));
      high = hn::ShiftRight<1>(high);
    }
    return hn::BitCast(DotU32(), hn::TableLookupBytes(table, hn::BitCast(hn::Repartition<uint8_t, DotU32>(), codes)));
  }

  const uint8_t* low_rows;
  const uint8_t* high_rows;
  CodeVec low, high;
  hn::Vec<hn::Repartition<uint8_t, DotU32>> table;
};

/// Steps whose pair sums fit 16 bits: a class adds at most 2 * kLargest * 128 in magnitude.
template <class Codes>
constexpr int StepsPerRun() {
  constexpr int kClasses = 32767 / (2 * Codes::kLargest * 128);
  return kClasses / (Codes::kRowClasses * Codes::kStepRows);
}

/// One pass over kVecs vectors of lanes from `lane` on. kSplit sums for each (row, byte, vector), one for every kSplit-th
/// class of codes: more independent chains where there are few rows.
template <class Codes, int kRows, int kVecs, int kSplit>
HWY_INLINE void DotTile(const CodePlanes& planes, int lane, int num_k, const int8_t* HWY_RESTRICT operand,
                        int32_t* HWY_RESTRICT dots) {
  static_assert(kWideSums || StepsPerRun<Codes>() >= 1, "a step must fit one run");
  const DotI32 di;
  const int num_steps = num_k / (4 * Codes::kRowClasses * Codes::kStepRows);

  hn::Vec<DotI32> total[kRows][2][kVecs];
  if constexpr (!kWideSums) {
    for (int r = 0; r < kRows; ++r) {
      for (int b = 0; b < 2; ++b) {
        for (int v = 0; v < kVecs; ++v) total[r][b][v] = hn::Zero(di);
      }
    }
  }
  Codes codes[kVecs];
  for (int v = 0; v < kVecs; ++v) codes[v].Start(planes, lane + v * kLanes);
  for (int first = 0; first < num_steps;) {
    const int end = kWideSums || num_steps - first < StepsPerRun<Codes>() ? num_steps : first + StepsPerRun<Codes>();
    DotSum sum[kSplit][kRows][2][kVecs];
    for (int s = 0; s < kSplit; ++s) {
      for (int r = 0; r < kRows; ++r) {
        for (int b = 0; b < 2; ++b) {
          for (int v = 0; v < kVecs; ++v) sum[s][r][b][v] = DotZero();
        }
      }
    }
    for (int step = first; step < end; ++step) {
      for (int v = 0; v < kVecs; ++v) codes[v].StartStep(step);
      for (int i = 0; i < Codes::kStepRows; ++i) {
        const int row = step * Codes::kStepRows + i;
        for (int v = 0; v < kVecs; ++v) codes[v].StartRow(row);
        for (int j = 0; j < Codes::kRowClasses; ++j) {
          CodeVec four[kVecs];
          for (int v = 0; v < kVecs; ++v) four[v] = codes[v].Next();
          const int8_t* at = operand + (row * Codes::kRowClasses + j) * 4;
          for (int r = 0; r < kRows; ++r) {
            for (int b = 0; b < 2; ++b) {
              int32_t quad;
              std::memcpy(&quad, at + (2 * r + b) * kMaxK, sizeof(quad));
              const auto wide = hn::Set(di, quad);
              for (int v = 0; v < kVecs; ++v)
                sum[j % kSplit][r][b][v] = DotAdd(sum[j % kSplit][r][b][v], four[v], wide);
            }
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

template <class Codes, int kRows>
HWY_NOINLINE void DotLanes(const CodePlanes& planes, int first_lane, int num_lanes, int num_k, const int8_t* operand,
                           int32_t* dots) {
  // 8 sums or more in flight, and no more registers than the target has.
#if HWY_TARGET == HWY_AVX3_DL
  constexpr int kVecs = Codes::kStepRows > 1 && kRows > 4 ? 1 : 2;
#else
  constexpr int kVecs = kRows == 1 || (kPassRows == 6 && Codes::kStepRows == 1) ? 2 : 1;
#endif
  constexpr int kChains = 2 * kRows * kVecs;
  constexpr int kSplit = kChains >= 8 ? 1 : kChains == 4 && Codes::kRowClasses == 4 ? 4 : 2;
  for (int lane = first_lane; lane < first_lane + num_lanes; lane += kVecs * kLanes) {
    DotTile<Codes, kRows, kVecs, kSplit>(planes, lane, num_k, operand, dots + lane);
  }
}

#if HWY_TARGET == HWY_AVX3_DL
HWY_POP_ATTRIBUTES
#endif

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

// Every number of rows that a pass can have, for one way of storing codes. Inside the namespace of a target.
#undef KVRAZOR_DOT_LANES
#undef KVRAZOR_INSTANTIATE_DOT_LANES
#define KVRAZOR_DOT_LANES(codes, rows) \
  template void DotLanes<codes, rows>(const CodePlanes&, int, int, int, const int8_t*, int32_t*);
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
#define KVRAZOR_INSTANTIATE_DOT_LANES(codes) \
  KVRAZOR_DOT_LANES(codes, 1)                \
  KVRAZOR_DOT_LANES(codes, 2)                \
  KVRAZOR_DOT_LANES(codes, 3)                \
  KVRAZOR_DOT_LANES(codes, 4)                \
  KVRAZOR_DOT_LANES(codes, 5)                \
  KVRAZOR_DOT_LANES(codes, 6)
#else
#define KVRAZOR_INSTANTIATE_DOT_LANES(codes) \
  KVRAZOR_DOT_LANES(codes, 1)                \
  KVRAZOR_DOT_LANES(codes, 2)                \
  KVRAZOR_DOT_LANES(codes, 3)                \
  KVRAZOR_DOT_LANES(codes, 4)
#endif

#endif  // KVRAZOR_SRC_BACKENDS_CPU_DOT_TILE_INL_H_
