// Launches of chunked prefill's kernels behind each other.
#pragma once

#include <cuda_runtime_api.h>

#include "src/backends/cuda/prefill_params.h"

namespace kvrazor::cuda {

/// The kernel's launch may overlap the end of the kernel before it in the stream; it has to wait for that one (WaitForLastKernel) before it reads
/// or writes global memory.
inline cudaError_t LaunchBehind(void (*kernel)(PrefillParams), dim3 grid, int threads, int shared_bytes,
                                const PrefillParams& params, cudaStream_t stream) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  config.attrs = &attribute;
  config.numAttrs = 1;
  PrefillParams copy = params;
  void* arguments[] = {&copy};
  return cudaLaunchKernelExC(&config, reinterpret_cast<const void*>(kernel), arguments);
}

}  // namespace kvrazor::cuda
