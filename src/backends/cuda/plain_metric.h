// Where the factor of a head's query metric lies for sealing plain pages: W_ic (i < c) of metric_layout.h as f32 [D i][D c], above the diagonal
// (on and below it stands what the factor was made from), then the pivots d_c as f32 [D].
#pragma once

#include <cstdint>

#include "src/backends/cuda/packed_page.h"

namespace kvrazor::cuda {

KVRAZOR_HOST_DEVICE constexpr int64_t PlainMetricFloats(int head_dim) {
  return int64_t{head_dim} * head_dim + head_dim;
}

}  // namespace kvrazor::cuda
