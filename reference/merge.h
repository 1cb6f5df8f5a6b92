// Joining attentions over disjoint keys in float64.
#pragma once

#include <vector>

namespace kvrazor::reference {

struct Partial {
  std::vector<double> out;
  double lse = 0;  ///< -inf: no key was seen
};

Partial Merge(const Partial& a, const Partial& b);

}  // namespace kvrazor::reference
