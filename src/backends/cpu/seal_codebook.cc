// Seals a page with Codec::kCodebook (TurboQuant): one norm for each token and head, codes into a fixed codebook.
//
// Exact formulas for one head and token, in this order (book: GaussianCodebook(bits), D = head_dim):
//   1. y = H x (no H without `rotate`); n = ||y||.
//   2. u = y sqrt(D) / (n step): in steps of the book's grid, as if y were D values of N(0, n^2 / D).
//      code_c = how many thresholds are <= u_c; v_c = steps[code_c] - middle.
//   3. Stored is the matched norm f16(n / ||v||), saturated: what is read back, stored norm * v, is as long as y.
//   4. n not > 0, exact tokens: norm 0, codes 0.
// Values read back are shorter than y in its own direction by the distortion of the book (2 bits: 6 %); matching the norm is what
// TurboQuant+ does about it, and takes nothing at read time.
//
// Order of work: rows [128][D] (f32, rotated) -> u in place and norms -> codes: keys from tiles [8][D][16], lanes = tokens;
// values from rows, lanes = channels.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "src/backends/cpu/scratch.h"
#include "src/backends/cpu/seal.h"
#include "src/codecs/codebook.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "src/backends/cpu/seal_codebook.cc"
#include "hwy/foreach_target.h"
#include "hwy/highway.h"
#include "src/backends/cpu/codes-inl.h"
#include "src/backends/cpu/head_tile-inl.h"

HWY_BEFORE_NAMESPACE();
namespace kvrazor::cpu {
namespace HWY_NAMESPACE {
namespace hn = hwy::HWY_NAMESPACE;

/// Step 2 for one vector of u.
HWY_INLINE hn::Vec<TagI32> BookCode(hn::Vec<TagF32> u, const Codebook& book) {
  const TagF32 d;
  const TagI32 di;
  auto code = hn::Zero(di);
  for (int k = 0; k + 1 < book.size(); ++k) {
    const auto above = hn::Ge(u, hn::Set(d, book.thresholds[static_cast<size_t>(k)]));
    code = hn::Sub(code, hn::VecFromMask(di, hn::RebindMask(di, above)));  // a true lane is -1
  }
  return code;
}

/// v of one vector of u.
HWY_INLINE hn::Vec<TagF32> BookLevel(hn::Vec<TagF32> u, const Codebook& book) {
  const TagF32 d;
  auto level = hn::Set(d, -book.middle);
  for (size_t k = 0; k + 1 < static_cast<size_t>(book.size()); ++k) {
    const auto gap = hn::Set(d, static_cast<float>(book.steps[k + 1] - book.steps[k]));
    level = hn::Add(level, hn::IfThenElseZero(hn::Ge(u, hn::Set(d, book.thresholds[k])), gap));
  }
  return level;
}

HWY_INLINE float SumOfSquares(const float* HWY_RESTRICT row, size_t n) {
  const TagF32 d;
  auto sum0 = hn::Zero(d);
  auto sum1 = hn::Zero(d);
  for (size_t c = 0; c < n; c += 2 * hn::Lanes(d)) {  // head_dim is a multiple of 32
    const auto x0 = hn::Load(d, row + c);
    const auto x1 = hn::Load(d, row + c + hn::Lanes(d));
    sum0 = hn::MulAdd(x0, x0, sum0);
    sum1 = hn::MulAdd(x1, x1, sum1);
  }
  return hn::GetLane(hn::SumOfLanes(d, hn::Add(sum0, sum1)));
}

/// Steps 1 to 3: y becomes u in place; the stored norm.
HWY_INLINE f16_bits NormToken(float* HWY_RESTRICT row, size_t n, const Codebook& book) {
  const TagF32 d;
  const float norm = std::sqrt(SumOfSquares(row, n));
  if (!(norm > 0)) return 0;
  const auto factor = hn::Set(d, std::sqrt(static_cast<float>(n)) / static_cast<float>(book.step) / norm);
  auto sum = hn::Zero(d);
  for (size_t c = 0; c < n; c += hn::Lanes(d)) {
    const auto u = hn::Mul(hn::Load(d, row + c), factor);
    const auto v = BookLevel(u, book);
    hn::Store(u, d, row + c);
    sum = hn::MulAdd(v, v, sum);
  }
  const float matched = norm / std::sqrt(hn::GetLane(hn::SumOfLanes(d, sum)));
  return F16FromF32(std::min(matched, 65504.0f));
}

void SealCodebookPage(const PageLayout& layout, const f16_bits* HWY_RESTRICT rows_f16, const TokenMask& exact,
                      std::byte* HWY_RESTRICT page) {
  const TagF32 d;
  const TagI32 di;
  const size_t n = static_cast<size_t>(layout.shape.head_dim);
  const bool keys = layout.side == Side::kKey;
  const Codebook& book = GaussianCodebook(layout.recipe.bits);
  Scratch scratch(n);
  float* rows = scratch.Take<float>(kPageTokens * n);
  float* tiles = scratch.Take<float>(kPageTokens * n);
  int32_t* keep = scratch.Take<int32_t>(kPageTokens);

  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::byte* head = page + layout.heads_at + h * layout.head_bytes;
    f16_bits* norms = reinterpret_cast<f16_bits*>(head + layout.norm_at);
    LoadHead(rows_f16, layout.shape, h, layout.recipe.rotate, exact, nullptr, rows);
    for (int t = 0; t < kPageTokens; ++t) {
      norms[t] = NormToken(rows + static_cast<size_t>(t) * n, n, book);
      keep[t] = norms[t] != 0 ? -1 : 0;
    }
    if (keys) RowsToTiles(rows, n, tiles);
    const size_t num_lanes = static_cast<size_t>(layout.num_lanes());
    for (size_t first = 0; first < num_lanes; first += hn::Lanes(d)) {
      const size_t tile = first / 16;
      const size_t lane = first % 16;
      const CodeRows code_rows = CodeRows::Of(layout, head, tile, lane);
      for (size_t k0 = 0; k0 < static_cast<size_t>(layout.num_k()); k0 += 32) {
        if (keys) {
          const float* from = tiles + tile * 16 * n + lane;
          StoreCodes(code_rows, k0, hn::Load(di, keep + first),
                     [&](size_t c) HWY_ATTR { return BookCode(hn::Load(d, from + c * 16), book); });
        } else {
          StoreCodes(code_rows, k0, hn::Set(di, -1), [&](size_t t) HWY_ATTR {
            return hn::And(BookCode(hn::Load(d, rows + t * n + first), book), hn::Set(di, keep[t]));
          });
        }
      }
    }
  }
}

}  // namespace HWY_NAMESPACE
}  // namespace kvrazor::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace kvrazor::cpu {

HWY_EXPORT(SealCodebookPage);

void SealCodebook(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, std::byte* page) {
  HWY_DYNAMIC_DISPATCH(SealCodebookPage)(layout, rows, exact, page);
}

}  // namespace kvrazor::cpu
#endif  // HWY_ONCE
