// The sealing kernels that this build has: one for each kind of page and head_dim, written into the build folder by CMake.
#pragma once

#include <span>

#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {

struct SealInstance {
  PageKind kind;
  int head_dim;
  const void* many_pages;  // __global__ void (SealParams): for throughput
  const void* few_pages;   // the same for an append: for the time of one page
  int threads;
  int shared_bytes;
};

std::span<const SealInstance> SealInstances();

}  // namespace kvrazor::cuda
