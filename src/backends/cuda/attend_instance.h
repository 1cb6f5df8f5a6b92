// One compiled decode kernel. The build writes a file for each (form of the page, rotation, head tiles) from attend_instance.cu.in and
// a table of them all.
#pragma once

#include <span>

#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {

struct AttendInstance {
  PageForm form;
  bool rotate;
  int head_tiles;        // of 4 query heads
  const void* function;  // void (const AttendParams)
  int (*shared_bytes)(int num_stages, int block_rows, int batch_size);
  int threads;  // of a CTA
  int teams;    // of consumer warps; units belong to them in turn
  int team_warps;
};

/// What this build has.
std::span<const AttendInstance> AttendInstances();

}  // namespace kvrazor::cuda
