// The attention kernels of chunked prefill and their launches.
#include <algorithm>

#include "src/backends/cuda/prefill_attend.cuh"
#include "src/backends/cuda/prefill_launch.h"

namespace kvrazor::cuda {
namespace {

constexpr int kMergeThreads = 256;
constexpr int kMergeCtasPerSm = 4;

template <int kDim, bool kSpecial>
__global__ void __launch_bounds__(kPrefillThreads, 1) PrefillAttendKernel(const __grid_constant__ PrefillParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL  // the plan lets no other device through
  PrefillAttend<kDim, kSpecial>::Run(p);
#endif
}
template <int kDim>
__global__ void __launch_bounds__(kMergeThreads) PrefillMergeKernel(const __grid_constant__ PrefillParams p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  WaitForLastKernel();
  PrefillAttend<kDim, false>::Merge(p);
#endif
}

template <int kDim, bool kSpecial>
cudaError_t Init() {
  return cudaFuncSetAttribute(PrefillAttendKernel<kDim, kSpecial>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                              PrefillAttend<kDim, kSpecial>::kSharedBytes);
}

template <int kDim>
cudaError_t Launch(const PrefillParams& p, bool special, cudaStream_t stream) {
  const auto grid = static_cast<unsigned>(std::max(p.max_tiles * p.num_kv_heads, p.max_partials));
  const cudaError_t error =
      special ? LaunchBehind(PrefillAttendKernel<kDim, true>, grid, kPrefillThreads, PrefillAttend<kDim, true>::kSharedBytes, p, stream)
              : LaunchBehind(PrefillAttendKernel<kDim, false>, grid, kPrefillThreads, PrefillAttend<kDim, false>::kSharedBytes, p, stream);
  if (error != cudaSuccess) return error;
  return LaunchBehind(PrefillMergeKernel<kDim>, static_cast<unsigned>(kMergeCtasPerSm * p.num_sms), kMergeThreads, 0, p, stream);
}

}  // namespace

cudaError_t InitPrefillAttend() {
  for (const cudaError_t error : {Init<64, false>(), Init<64, true>(), Init<128, false>(), Init<128, true>(), Init<256, false>(), Init<256, true>()}) {
    if (error != cudaSuccess) return error;
  }
  return cudaSuccess;
}

cudaError_t LaunchPrefillAttend(const PrefillParams& p, int head_dim, bool special, cudaStream_t stream) {
  if (head_dim == 64) return Launch<64>(p, special, stream);
  return head_dim == 128 ? Launch<128>(p, special, stream) : Launch<256>(p, special, stream);
}

}  // namespace kvrazor::cuda
