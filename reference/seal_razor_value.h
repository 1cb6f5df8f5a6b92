// Sealing a page with the razor value codec. Per kv head, y_t the rotated values, L = 2^bits - 1:
//   1. n_t      = e5m3(|y_t|), u_t = y_t / n_t (u_t = 0 where n_t is 0)
//   2. fit      per channel over the tokens that are not exact, for c in {1, .9}: scale = 2 c half / L, offset = mid -
//               c half (mid and half of the channel's range); two rounds of {codes; (scale, offset) = linear
//               regression of u on the codes}; the line of least squared error (with the codes it came from), the
//               first of equals. A round whose codes are all equal, or whose slope is not positive, ends that c. No
//               line at all (all values equal): scale 0.
//   3. reach    centre = offset + L/2 scale. An int8 in eighths of the scale reaches 127/8 scales: a line flatter than
//               |centre| / 14 gets that scale, and its centre moves up half a scale so that a code lies on the values
//   4. stored   s_c = e5m3(scale), z = clamp(rne(8 centre / s_c), -127, 127), read back as z s_c / 8
//   5. codes    clamp(rne((u - z s_c / 8) / s_c + L / 2), 0, L)
// Steps 2 to 5 for each group of tokens (group_size of them, 0: the whole page).
// s_c = 0: z = 0, codes 0. Exact tokens: codes 0, norm 0. No token left: all 0.
#pragma once

#include <cstddef>
#include <vector>

#include "kvrazor/layout.h"
#include "reference/codes.h"

namespace kvrazor::reference {

struct Line {
  double scale = 0;
  double centre = 0;  ///< value half way between the first and the last code
};
/// One round of step 2: the line and the squared error with the codes that it was fitted to.
struct LineCandidate {
  Line line;
  double error;
};
/// All rounds of step 2 that count, in order; if none does, one line with scale 0 through the value.
std::vector<LineCandidate> RazorLineCandidates(const std::vector<double>& u, int bits);
/// Step 3.
Line WithinReach(Line line);

/// L2 norm of one head's row, before it is stored.
double HeadNorm(const std::vector<double>& row);

void SealRazorValue(const PageLayout& layout, const Rows& rows, const TokenMask& exact, std::byte* page);

}  // namespace kvrazor::reference
