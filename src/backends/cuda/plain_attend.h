// The plan of attention over plain pages: how a sequence is split, what its workspace holds. AttendPlan (attend.h) checks and owns it.
#pragma once

#include <cstdint>
#include <string>

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/device.h"
#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/plain_instance.h"

namespace kvrazor::cuda {

class PlainAttendPlan {
 public:
  /// num_tiles: kv heads times blocks of query rows. Throws Error if this build has no kernel or the device no room.
  PlainAttendPlan(const PackedFormat& format, const Device& device, int num_tiles, int head_tiles, int max_batch_size,
                  int max_pages);

  int64_t workspace_bytes() const;
  std::string Explain() const;
  void InitWorkspace(void* workspace, cudaStream_t stream) const;
  /// `params` without its partials, which lie in the workspace.
  void Run(AttendParams params, void* workspace, cudaStream_t stream) const;

 private:
  int NumSplits(int batch_size) const;
  int64_t num_parts() const;

  PackedFormat format_;
  PlainAttendInstance instance_{};
  int num_tiles_ = 0;
  int max_batch_size_ = 0;
  int most_splits_ = 1;
  int64_t wanted_ctas_ = 0;  // splits of all tiles together
};

}  // namespace kvrazor::cuda
