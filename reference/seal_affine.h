// Sealing a page with the affine codec: groups of values with a 16-bit scale and offset, x = scale * code + offset.
// Per channel: a group is group_size consecutive tokens of one channel; per token: group_size consecutive channels of one token.
//   kFloatMin (A)  offset = f16(min), scale = f16((max - min) / L), code = clamp(rne((x - offset) / scale), 0, L)
//   kRounded (B)   scale = (max - min) / L, zero = rne(-min / scale), code = clamp(rne(x / scale + zero), 0, L);
//                  stored f16(scale) and f16(-zero * scale)
//   kRoundedWithZero (B0)  B with min <- min(min, 0), max <- max(max, 0)
//   kSymmetric     scale = max |x| / (2^(bits-1) - 1), zero = 2^(bits-1); then as B
// The last three first multiply both ends of the range (max |x|) by clip_percent / 100.
// L = 2^bits - 1. Where f16(scale) is 0 (values all equal, or too close for it): offset = f16(min), codes 0. A group of
// which no token counts: all 0. 16-bit parameters saturate at the largest finite value. Exact tokens enter no minimum
// or maximum; their codes, and parameters of groups of theirs alone (values), are 0, their token norms 1.
#pragma once

#include <cstddef>
#include <vector>

#include "kvrazor/layout.h"
#include "reference/codes.h"

namespace kvrazor::reference {

/// Parameters of one group before they are stored (kFloatMin: scale and offset are stored values already).
struct AffineFit {
  double scale = 0;  ///< 0: one value for all, the offset
  double offset = 0;
  double zero = 0;            ///< kRounded: code of the value 0, an integer
  double zero_unrounded = 0;  ///< -min / scale
};

AffineFit FitAffine(const std::vector<double>& values, const SideRecipe& recipe);

/// What is rounded and clamped to the code of x; 0 when the scale is 0.
double AffineCodeArgument(double x, const AffineFit& fit, const SideRecipe& recipe);

/// clamp(rne(argument), 0, 2^bits - 1).
int CodeOf(double argument, int bits);

/// L2 norm of a token over all kv heads, before it is stored.
double TokenNorm(const PageLayout& layout, const Rows& rows, int token);
/// The stored norm: f16, saturated; 1 where it would not be positive. Exact tokens: 1.
uint16_t StoredTokenNorm(double norm);

void SealAffine(const PageLayout& layout, const Rows& rows, const TokenMask& exact, std::byte* page);

}  // namespace kvrazor::reference
