// Reading a page side back in float64.
#pragma once

#include <vector>

#include "kvrazor/layout.h"
#include "src/ops/page_set.h"

namespace kvrazor::reference {

/// A value with the sum of the absolute terms that it was added up from: rounding errors are bounded by multiples of
/// it.
struct Sum {
  double value = 0;
  double magnitude = 0;
  void Add(double term) {
    value += term;
    magnitude += term < 0 ? -term : term;
  }
};

/// One head of one token, not rotated: [head_dim]. For rotated codecs the magnitude of a channel is
/// sum_c |H_ic| (magnitude of the stored, rotated channel c); for 16-bit rows and exact tokens it is |value|.
std::vector<Sum> DequantizeHead(const PageLayout& layout, const PageSide& page, int token, int head);

}  // namespace kvrazor::reference
