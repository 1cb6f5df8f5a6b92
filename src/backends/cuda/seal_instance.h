// The kernels that write and read back packed pages which this build has: a set for each form of page, written into the build folder by CMake.
#pragma once

#include <span>

#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {

struct SealVariant {
  const void* function;  // __global__ void (SealParams)
  int split;             // CTAs that share one head and side of a page
  int ctas_per_sm;       // that are resident at once
  int threads;
  int shared_bytes;
};

struct SealInstance {
  PageForm form;
  SealVariant many_pages;  // for throughput
  SealVariant few_pages;   // for an append: for the time of one page
  const void* dequantize;  // __global__ void (DequantizeParams)
  int dequantize_threads;
};

std::span<const SealInstance> SealInstances();

}  // namespace kvrazor::cuda
