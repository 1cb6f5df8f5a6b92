// One page to be read back, as the device reads it.
#pragma once

#include <cstdint>

namespace kvrazor::cuda {

/// Lies in device memory: it may be written by a kernel or between replays of a graph.
struct DequantizeJob {
  int32_t source = -1;       ///< packed page; < 0: nothing is done
  int32_t target = 0;        ///< >= 0: first of 128 rows of DequantizeArrays::k and v; < 0: the row page ~target
  int32_t sink = -1;         ///< >= 0: the first exact_tokens rows come from this sequence's sink rows
  int32_t exact_tokens = 0;  ///< 0 to 16
};

}  // namespace kvrazor::cuda
