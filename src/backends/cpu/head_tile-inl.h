// One head of a page as f32, in the two orders that sealing needs.
//
//   rows    [128][head_dim]        token-major: what the model writes; statistics along tokens, rotation, value codes
//   tiles   [8][head_dim][16]      16 tokens side by side (the lanes of a row of key codes), channels below each other
//
// Tokens that stay in 16 bits elsewhere become rows of 0; values that are not finite become 0.
#if defined(KVRAZOR_SRC_BACKENDS_CPU_HEAD_TILE_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef KVRAZOR_SRC_BACKENDS_CPU_HEAD_TILE_INL_H_
#undef KVRAZOR_SRC_BACKENDS_CPU_HEAD_TILE_INL_H_
#else
#define KVRAZOR_SRC_BACKENDS_CPU_HEAD_TILE_INL_H_
#endif

#include <cmath>
#include <cstddef>
#include <cstring>

#include "hwy/highway.h"
#include "src/backends/cpu/hadamard-inl.h"
#include "src/ops/page_set.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// f16 bits -> f32, 0 for infinities and NaN.
HWY_INLINE hn::Vec<TagF32> LoadFinite(const f16_bits* HWY_RESTRICT p) {
  const TagF32 d;
  const hn::Rebind<uint16_t, TagF32> d16;
  const hn::Rebind<hwy::float16_t, TagF32> df16;
  const auto bits = hn::LoadU(d16, p);
  const auto exponent = hn::Set(d16, uint16_t{0x7c00});
  const auto bad = hn::Eq(hn::And(bits, exponent), exponent);
  return hn::PromoteTo(d, hn::BitCast(df16, hn::IfThenZeroElse(bad, bits)));
}

/// One row times `factor`, rotated if asked (the rotation's 1/sqrt(n) is added here).
HWY_INLINE void LoadRow(const f16_bits* HWY_RESTRICT from, size_t n, bool rotate, float factor,
                        float* HWY_RESTRICT to) {
  const TagF32 d;
  if (rotate) {
    const auto scale = hn::Set(d, factor / std::sqrt(static_cast<float>(n)));
    HadamardRow(to, n, [&](size_t i) HWY_ATTR { return hn::Mul(LoadFinite(from + i), scale); });
  } else {
    const auto scale = hn::Set(d, factor);
    for (size_t i = 0; i < n; i += hn::Lanes(d)) hn::Store(hn::Mul(LoadFinite(from + i), scale), d, to + i);
  }
}

/// Head `h` of a page.
///   page     f16 [128][num_kv_heads][head_dim]
///   factors  [128] multiplied into each token, or nullptr
///   rows     [128][head_dim]
HWY_INLINE void LoadHead(const f16_bits* HWY_RESTRICT page, HeadShape shape, int h, bool rotate, const TokenMask& exact,
                         const float* HWY_RESTRICT factors, float* HWY_RESTRICT rows) {
  const size_t n = static_cast<size_t>(shape.head_dim);
  const size_t stride = static_cast<size_t>(shape.num_kv_heads) * n;
  for (int t = 0; t < kPageTokens; ++t) {
    float* row = rows + static_cast<size_t>(t) * n;
    if (exact.Test(t)) {
      std::memset(row, 0, n * sizeof(float));
    } else {
      LoadRow(page + static_cast<size_t>(t) * stride + static_cast<size_t>(h) * n, n, rotate,
              factors ? factors[t] : 1.0f, row);
    }
  }
}

/// to[c][r] = from[r][c] for 16 rows; both 64-byte aligned, n a multiple of 4.
HWY_INLINE void RowsToTile(const float* HWY_RESTRICT from, size_t n, float* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  for (size_t c = 0; c < n; ++c) {
    for (size_t r = 0; r < 16; ++r) to[c * 16 + r] = from[r * n + c];
  }
#else
  const hn::FixedTag<float, 4> d4;
  for (size_t r = 0; r < 16; r += 4) {
    for (size_t c = 0; c < n; c += 4) {
      const auto r0 = hn::Load(d4, from + (r + 0) * n + c);
      const auto r1 = hn::Load(d4, from + (r + 1) * n + c);
      const auto r2 = hn::Load(d4, from + (r + 2) * n + c);
      const auto r3 = hn::Load(d4, from + (r + 3) * n + c);
      const auto r01_lo = hn::InterleaveLower(d4, r0, r1);
      const auto r01_hi = hn::InterleaveUpper(d4, r0, r1);
      const auto r23_lo = hn::InterleaveLower(d4, r2, r3);
      const auto r23_hi = hn::InterleaveUpper(d4, r2, r3);
      hn::Store(hn::ConcatLowerLower(d4, r23_lo, r01_lo), d4, to + (c + 0) * 16 + r);
      hn::Store(hn::ConcatUpperUpper(d4, r23_lo, r01_lo), d4, to + (c + 1) * 16 + r);
      hn::Store(hn::ConcatLowerLower(d4, r23_hi, r01_hi), d4, to + (c + 2) * 16 + r);
      hn::Store(hn::ConcatUpperUpper(d4, r23_hi, r01_hi), d4, to + (c + 3) * 16 + r);
    }
  }
#endif
}

/// to[r][c] = from[c][r] for 16 rows: the other way round.
HWY_INLINE void TileToRows(const float* HWY_RESTRICT from, size_t n, float* HWY_RESTRICT to) {
#if HWY_TARGET == HWY_SCALAR
  for (size_t c = 0; c < n; ++c) {
    for (size_t r = 0; r < 16; ++r) to[r * n + c] = from[c * 16 + r];
  }
#else
  const hn::FixedTag<float, 4> d4;
  for (size_t c = 0; c < n; c += 4) {
    for (size_t r = 0; r < 16; r += 4) {
      const auto c0 = hn::Load(d4, from + (c + 0) * 16 + r);
      const auto c1 = hn::Load(d4, from + (c + 1) * 16 + r);
      const auto c2 = hn::Load(d4, from + (c + 2) * 16 + r);
      const auto c3 = hn::Load(d4, from + (c + 3) * 16 + r);
      const auto c01_lo = hn::InterleaveLower(d4, c0, c1);
      const auto c01_hi = hn::InterleaveUpper(d4, c0, c1);
      const auto c23_lo = hn::InterleaveLower(d4, c2, c3);
      const auto c23_hi = hn::InterleaveUpper(d4, c2, c3);
      hn::Store(hn::ConcatLowerLower(d4, c23_lo, c01_lo), d4, to + (r + 0) * n + c);
      hn::Store(hn::ConcatUpperUpper(d4, c23_lo, c01_lo), d4, to + (r + 1) * n + c);
      hn::Store(hn::ConcatLowerLower(d4, c23_hi, c01_hi), d4, to + (r + 2) * n + c);
      hn::Store(hn::ConcatUpperUpper(d4, c23_hi, c01_hi), d4, to + (r + 3) * n + c);
    }
  }
#endif
}

/// rows [128][n] -> tiles [8][n][16]
HWY_INLINE void RowsToTiles(const float* HWY_RESTRICT rows, size_t n, float* HWY_RESTRICT tiles) {
  for (size_t at = 0; at < kPageTokens * n; at += 16 * n) RowsToTile(rows + at, n, tiles + at);
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#endif  // KVRAZOR_SRC_BACKENDS_CPU_HEAD_TILE_INL_H_
