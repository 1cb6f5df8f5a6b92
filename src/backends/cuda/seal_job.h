// One page to be sealed, as the device reads it.
#pragma once

#include <cstdint>

namespace kvrazor::cuda {

/// Lies in device memory: it may be written by a kernel or between replays of a graph.
struct SealJob {
  int32_t source = 0;        ///< >= 0: first of 128 rows of SealArrays::k and v; < 0: the row page ~source
  int32_t target = -1;       ///< packed page to write; < 0: nothing is done
  int32_t sink = -1;         ///< >= 0: rows of the exact tokens are copied to this sequence's sink rows, at most 16
  int32_t table_entry = -1;  ///< >= 0: page_table[table_entry] becomes `target`
  uint32_t exact[4] = {};    ///< one bit a token: kept in 16 bits elsewhere, takes part in no statistic
};
static_assert(sizeof(SealJob) == 32);

}  // namespace kvrazor::cuda
