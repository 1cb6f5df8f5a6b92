// The kernels over plain pages that this build has: one set a head dimension, for every format; written into the build folder by CMake.
#pragma once

#include <span>

namespace kvrazor::cuda {

struct PlainAttendInstance {
  int head_dim;
  int head_tiles;        // of 4 query rows
  const void* function;  // __global__ void (PlainAttendParams)
  int threads;
  int shared_bytes;
};
std::span<const PlainAttendInstance> PlainAttendInstances();

struct PlainKernel {
  const void* function;
  int threads;
  int shared_bytes;
};
struct PlainStoreInstance {
  int head_dim;
  PlainKernel seal;         // __global__ void (SealParams, PlainPage)
  PlainKernel dequantize;   // __global__ void (DequantizeParams, PlainPage)
  PlainKernel add_queries;  // __global__ void (QueryParams)
  PlainKernel factor;       // __global__ void (const float* moments, float* metrics)
};
std::span<const PlainStoreInstance> PlainStoreInstances();

}  // namespace kvrazor::cuda
