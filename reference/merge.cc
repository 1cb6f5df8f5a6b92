#include "reference/merge.h"

#include <cmath>
#include <limits>

namespace kvrazor::reference {

Partial Merge(const Partial& a, const Partial& b) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  if (a.lse == kNone) return b;
  if (b.lse == kNone) return a;
  const double top = std::fmax(a.lse, b.lse);
  const double a_share = std::exp(a.lse - top);
  const double b_share = std::exp(b.lse - top);
  Partial joined;
  for (size_t c = 0; c < a.out.size(); ++c) {
    joined.out.push_back((a_share * a.out[c] + b_share * b.out[c]) / (a_share + b_share));
  }
  joined.lse = top + std::log(a_share + b_share);
  return joined;
}

}  // namespace kvrazor::reference
