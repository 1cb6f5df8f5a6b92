#include "src/backends/cuda/device.h"

#include <cuda_runtime_api.h>

#include "kvrazor/error.h"
#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {
namespace {

void Check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw Error(std::string("cuda: ") + what + ": " + cudaGetErrorString(error));
}

}  // namespace

void CheckDevice(const char* op, const PackedFormat& format, const Device& device) {
  const bool plain = format.kind == PageKind::kPlain;
  if (device.compute_major >= (plain ? kPlainComputeMajor : kPackedComputeMajor)) return;
  const std::string what = std::string("cuda ") + op + ": no kernel for " + FormatText(format) + " on " + device.name +
                           " (compute capability " + std::to_string(device.compute_major) + ".x); ";
  throw Error(what + (plain ? "they need 8.0. Choose the cpu backend."
                            : "they need 9.0. Keep plain pages there: MakePackedFormat(layer, compute_major)."));
}

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
