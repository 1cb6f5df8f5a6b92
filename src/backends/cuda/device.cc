#include "src/backends/cuda/device.h"

#include <cuda_runtime_api.h>

#include "kvrazor/error.h"

namespace kvrazor::cuda {
namespace {

void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Error(std::string("cuda: ") + what + ": " + cudaGetErrorString(error));
}

}  // namespace

Device CurrentDevice() {
  int id = 0;
  Check(cudaGetDevice(&id), "there is no CUDA device");
  cudaDeviceProp p{};
  Check(cudaGetDeviceProperties(&p, id), "the CUDA device cannot be read");
  return {.name = p.name,
          .compute_major = p.major,
          .num_sms = p.multiProcessorCount,
          .shared_bytes = static_cast<int64_t>(p.sharedMemPerBlockOptin)};
}

}  // namespace kvrazor::cuda
