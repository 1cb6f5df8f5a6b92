// 16-bit rows: f32 products with panels shared by all query rows of a pass.
//
//   out[r][lane] (+)= sum_k a[r][k] * panel[k][lane]          registers: rows x vectors of lanes, k outermost
//   logits   a = q [rows][D],    panel = K transposed [D][128 tokens]      (transposed once per page, head and row block)
//   output   a = p [rows][128],  panel = V as it lies [tokens][D]
//
// A panel is f16 where few rows use it (converted in the registers) and f32 where many do.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_ROWS_F16_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_ROWS_F16_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_ROWS_F16_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_ROWS_F16_INL_H_
#endif

#include <cstddef>
#include <cstdint>

#include "hwy/cache_control.h"
#include "hwy/highway.h"
#include "src/backends/cpu/operand-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// A head's rows lie a token apart, farther than hardware prefetchers follow: ask for those of later tokens in time.
inline constexpr int kPrefetchTokens = 32;
HWY_INLINE void PrefetchRow(const f16_bits* row, int dim) {
  for (int c = 0; c < dim; c += 32) hwy::Prefetch(row + c);
}

template <int kRows, int kVecs, class T>
HWY_INLINE void MultiplyTile(const float* HWY_RESTRICT a, int64_t a_stride, const T* HWY_RESTRICT panel,
                             int64_t panel_stride, int num_k, float* HWY_RESTRICT out, int64_t out_stride,
                             bool accumulate) {
  const TagF32 d;
  VecF32 sum[kRows][kVecs];
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v)
      sum[r][v] = accumulate ? hn::Load(d, out + r * out_stride + v * kLanes) : hn::Zero(d);
  }
  for (int k = 0; k < num_k; ++k) {
    VecF32 b[kVecs];
    if constexpr (sizeof(T) == 2) PrefetchRow(panel + (k + kPrefetchTokens) * panel_stride, kVecs * kLanes);
    for (int v = 0; v < kVecs; ++v) b[v] = LoadAsF32(panel + k * panel_stride + v * kLanes);
    for (int r = 0; r < kRows; ++r) {
      const auto x = hn::Set(d, a[r * a_stride + k]);
      for (int v = 0; v < kVecs; ++v) sum[r][v] = hn::MulAdd(x, b[v], sum[r][v]);
    }
  }
  for (int r = 0; r < kRows; ++r) {
    for (int v = 0; v < kVecs; ++v) hn::Store(sum[r][v], d, out + r * out_stride + v * kLanes);
  }
}

/// Tiles of kVecs vectors as long as they fit, then narrower ones.
template <int kRows, int kVecs, class T>
HWY_INLINE void MultiplyLanes(const float* a, int64_t a_stride, const T* panel, int64_t panel_stride, int num_k,
                              int lane, int num_lanes, float* out, int64_t out_stride, bool accumulate) {
  for (; lane + kVecs * kLanes <= num_lanes; lane += kVecs * kLanes) {
    MultiplyTile<kRows, kVecs>(a, a_stride, panel + lane, panel_stride, num_k, out + lane, out_stride, accumulate);
  }
  if constexpr (kVecs > 1) {
    if (lane < num_lanes) {
      MultiplyLanes<kRows, kVecs / 2>(a, a_stride, panel, panel_stride, num_k, lane, num_lanes, out, out_stride,
                                      accumulate);
    }
  }
}

/// num_lanes: multiple of 16, so of every target's vector.
template <int kRows, class T>
HWY_NOINLINE void MultiplyPanel(const float* a, int64_t a_stride, const T* panel, int64_t panel_stride, int num_k,
                                int num_lanes, float* out, int64_t out_stride, bool accumulate) {
  // At least 8 sums in flight (an fma takes 4 cycles and two start in each), at most what the registers hold.
  constexpr int kBudget = kPassRows == 6 ? 24 : 8;
  constexpr int kVecs = kRows * 8 <= kBudget ? 8 : kRows * 4 <= kBudget ? 4 : kRows * 2 <= kBudget ? 2 : 1;
  MultiplyLanes<kRows, kVecs>(a, a_stride, panel, panel_stride, num_k, 0, num_lanes, out, out_stride, accumulate);
}

/// 8 x 8 transpose of 16-bit values in 128-bit registers.
HWY_INLINE void Transpose8x8(hn::Vec128<uint16_t> (&x)[8]) {
  const hn::Full128<uint16_t> d16;
  const hn::Full128<uint32_t> d32;
  const hn::Full128<uint64_t> d64;
  hn::Vec128<uint32_t> pairs[8];
  for (int i = 0; i < 4; ++i) {
    pairs[i] = hn::BitCast(d32, hn::InterleaveLower(d16, x[2 * i], x[2 * i + 1]));      // columns 0-3
    pairs[4 + i] = hn::BitCast(d32, hn::InterleaveUpper(d16, x[2 * i], x[2 * i + 1]));  // columns 4-7
  }
  for (int half = 0; half < 2; ++half) {
    const auto* p = pairs + 4 * half;
    const auto low01 = hn::BitCast(d64, hn::InterleaveLower(d32, p[0], p[1]));
    const auto low23 = hn::BitCast(d64, hn::InterleaveLower(d32, p[2], p[3]));
    const auto high01 = hn::BitCast(d64, hn::InterleaveUpper(d32, p[0], p[1]));
    const auto high23 = hn::BitCast(d64, hn::InterleaveUpper(d32, p[2], p[3]));
    x[4 * half + 0] = hn::BitCast(d16, hn::InterleaveLower(d64, low01, low23));
    x[4 * half + 1] = hn::BitCast(d16, hn::InterleaveUpper(d64, low01, low23));
    x[4 * half + 2] = hn::BitCast(d16, hn::InterleaveLower(d64, high01, high23));
    x[4 * half + 3] = hn::BitCast(d16, hn::InterleaveUpper(d64, high01, high23));
  }
}

HWY_INLINE void StoreTokens(hn::Vec128<uint16_t> x, f16_bits* to) { hn::StoreU(x, hn::Full128<uint16_t>(), to); }
HWY_INLINE void StoreTokens(hn::Vec128<uint16_t> x, float* to) {
  constexpr int kStep = kLanes < 8 ? kLanes : 8;
  const hn::CappedTag<float, 8> d;
  const hn::Rebind<hwy::float16_t, hn::CappedTag<float, 8>> dh;
  HWY_ALIGN f16_bits tokens[8];
  hn::Store(x, hn::Full128<uint16_t>(), tokens);
  for (int i = 0; i < 8; i += kStep) {
    hn::StoreU(hn::PromoteTo(d, hn::LoadU(dh, reinterpret_cast<const hwy::float16_t*>(tokens + i))), d, to + i);
  }
}

/// Keys of one head as panel [dim][128]. Columns from num_tokens to the next multiple of 8 repeat the last token.
///   rows  f16, token_stride apart
template <class T>
HWY_NOINLINE void TransposeKeys(const f16_bits* rows, int64_t token_stride, int num_tokens, int dim, T* panel) {
  const hn::Full128<uint16_t> d16;
  for (int t = 0; t < num_tokens; t += 8) {
    const f16_bits* token[8];
    for (int i = 0; i < 8; ++i) token[i] = rows + (t + i < num_tokens ? t + i : num_tokens - 1) * token_stride;
    for (int i = kPrefetchTokens; i < kPrefetchTokens + 8 && t + i < num_tokens; ++i)
      PrefetchRow(rows + (t + i) * token_stride, dim);
    for (int c = 0; c < dim; c += 8) {
      hn::Vec128<uint16_t> x[8];
      for (int i = 0; i < 8; ++i) x[i] = hn::LoadU(d16, token[i] + c);
      Transpose8x8(x);
      for (int i = 0; i < 8; ++i) StoreTokens(x[i], panel + (c + i) * kPageTokens + t);
    }
  }
}

/// Values of one head as f32 [num_tokens][dim].
HWY_NOINLINE void ConvertValues(const f16_bits* rows, int64_t token_stride, int num_tokens, int dim, float* panel) {
  for (int t = 0; t < num_tokens; ++t) {
    for (int c = 0; c < dim; c += kLanes)
      hn::Store(LoadF16(rows + t * token_stride + c), TagF32(), panel + t * dim + c);
  }
}

/// q . k of one 16-bit key.
HWY_INLINE float DotRow(const float* HWY_RESTRICT q, const f16_bits* HWY_RESTRICT key, int dim) {
  auto sum = hn::Zero(TagF32());
  for (int c = 0; c < dim; c += kLanes) sum = hn::MulAdd(hn::Load(TagF32(), q + c), LoadF16(key + c), sum);
  return Total(sum);
}

/// out += p * value of one 16-bit value.
HWY_INLINE void AddRow(float p, const f16_bits* HWY_RESTRICT value, int dim, float* HWY_RESTRICT out) {
  const auto weight = hn::Set(TagF32(), p);
  for (int c = 0; c < dim; c += kLanes) {
    hn::Store(hn::MulAdd(weight, LoadF16(value + c), hn::Load(TagF32(), out + c)), TagF32(), out + c);
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_ROWS_F16_INL_H_
