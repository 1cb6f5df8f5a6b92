#include "src/backends/cuda/plain_attend.h"

#include <cuda_runtime_api.h>

#include <algorithm>

#include "src/backends/cuda/attend_shared.h"
#include "src/backends/cuda/plain_page.h"
#include "src/backends/cuda/plain_params.h"
#include "src/backends/cuda/plan_op.h"

namespace kvrazor::cuda {
namespace {

constexpr int kCtasPerSm = 4;    // enough to hide that a warp waits for its own reads
constexpr int kMaxSplits = 256;  // a result is merged from as many parts, one after the other

constexpr PlanOp kOp{"attend"};

}  // namespace

PlainAttendPlan::PlainAttendPlan(const PackedFormat& format, const Device& device, int num_tiles, int head_tiles,
                                 int max_batch_size, int max_pages)
    : format_(format), num_tiles_(num_tiles), max_batch_size_(max_batch_size) {
  std::string built;
  for (const PlainAttendInstance& i : PlainAttendInstances()) {
    if (i.head_dim == format.head_dim && i.head_tiles == head_tiles) instance_ = i;
    if (i.head_tiles == head_tiles) built += (built.empty() ? "" : ", ") + std::to_string(i.head_dim);
  }
  if (!instance_.function) {
    kOp.Refuse("no kernel for " + FormatText(format) + " at head_dim=" + std::to_string(format.head_dim) +
               "; this build has head_dim " + built + ". Rebuild with -DKVRAZOR_CUDA_HEAD_DIMS.");
  }
  if (instance_.shared_bytes > device.shared_bytes) {
    kOp.Refuse("the kernel needs " + std::to_string(instance_.shared_bytes) + " bytes of shared memory, " +
               device.name + " has " + std::to_string(device.shared_bytes) + ". Choose the cpu backend.");
  }
  most_splits_ = std::min(max_pages, kMaxSplits);
  wanted_ctas_ = int64_t{kCtasPerSm} * device.num_sms;
}

int PlainAttendPlan::NumSplits(int batch_size) const {
  const int64_t tiles = int64_t{num_tiles_} * batch_size;
  return static_cast<int>(std::clamp<int64_t>((wanted_ctas_ + tiles - 1) / tiles, 1, most_splits_));
}

// Of the batch that has most: rounding up gives every tile less than one split more than it wants.
int64_t PlainAttendPlan::num_parts() const {
  return (wanted_ctas_ + int64_t{max_batch_size_} * num_tiles_) * kBlockRows;
}

int64_t PlainAttendPlan::workspace_bytes() const {
  return num_parts() * (format_.head_dim + 2) * static_cast<int64_t>(sizeof(float)) +
         int64_t{max_batch_size_} * num_tiles_ * static_cast<int64_t>(sizeof(uint32_t));
}

std::string PlainAttendPlan::Explain() const {
  return "by composition: each warp decodes 16 tokens of a page into 16-bit rows in shared memory, then attends over "
         "rows on f16 tensor cores; correct, not fast. "
         "A sequence and kv head is split " +
         std::to_string(NumSplits(1)) + " ways alone and " + std::to_string(NumSplits(max_batch_size_)) +
         " in a full batch, " + std::to_string(instance_.threads) + " threads and " +
         std::to_string(instance_.shared_bytes) + " bytes of shared memory a CTA";
}

void PlainAttendPlan::InitWorkspace(void* workspace, cudaStream_t stream) const {
  kOp.Check(
      cudaFuncSetAttribute(instance_.function, cudaFuncAttributeMaxDynamicSharedMemorySize, instance_.shared_bytes),
      "shared memory");
  kOp.Check(cudaMemsetAsync(workspace, 0, static_cast<size_t>(workspace_bytes()), stream), "workspace");
}

void PlainAttendPlan::Run(AttendParams params, void* workspace, cudaStream_t stream) const {
  params.partial_out = static_cast<float*>(workspace);
  params.partial_lse = params.partial_out + num_parts() * format_.head_dim;
  PlainAttendParams p{params, MakePlainPage(format_),
                      reinterpret_cast<uint32_t*>(params.partial_lse + num_parts() * 2)};
  void* arguments[] = {&p};
  const dim3 grid(static_cast<unsigned>(NumSplits(params.batch_size)), static_cast<unsigned>(num_tiles_),
                  static_cast<unsigned>(params.batch_size));
  kOp.Check(cudaLaunchKernel(instance_.function, grid, dim3(static_cast<unsigned>(instance_.threads)), arguments,
                             static_cast<size_t>(instance_.shared_bytes), stream),
            "the launch was refused");
}

}  // namespace kvrazor::cuda
