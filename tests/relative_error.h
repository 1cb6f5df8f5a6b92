#pragma once

#include <cmath>
#include <vector>

namespace kvrazor::test {

/// Root mean square of the differences over that of what is wanted; infinite where sizes differ or nothing is wanted.
inline double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  if (got.size() != want.size() || want.empty()) return INFINITY;
  double difference = 0, sum = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(double{got[i]} - want[i], 2);
    sum += std::pow(double{want[i]}, 2);
  }
  return std::sqrt(difference / sum);
}

}  // namespace kvrazor::test
