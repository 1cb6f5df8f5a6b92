#include "reference/rotate.h"

#include <cmath>

namespace kvrazor::reference {

void RotateHead(double* x, int head_dim) {
  for (int stride = 1; stride < head_dim; stride *= 2) {
    for (int i = 0; i < head_dim; ++i) {
      if (i & stride) continue;
      const double a = x[i];
      const double b = x[i + stride];
      x[i] = a + b;
      x[i + stride] = a - b;
    }
  }
  for (int i = 0; i < head_dim; ++i) x[i] /= std::sqrt(static_cast<double>(head_dim));
}

}  // namespace kvrazor::reference
