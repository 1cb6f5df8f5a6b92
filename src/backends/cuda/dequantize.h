// Packed pages back to 16 bits on the GPU: thawing a page that new rows will overwrite, or rows for kernels that read nothing else. A plan
// checks everything; a run only launches a kernel and can be captured in a CUDA graph. Copying a packed page needs no kernel: a page is
// contiguous, format.page_bytes() long, in every form.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "src/backends/cuda/dequantize_job.h"
#include "src/backends/cuda/device.h"
#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {

struct DequantizeSpec {
  PackedFormat format;
  int max_jobs = 0;  ///< pages of one run, at most 65535
};

/// Device memory of one run; 16-byte aligned.
struct DequantizeArrays {
  const std::byte* packed_pages = nullptr;  ///< [pages][format.page_bytes()]
  const std::byte* sink_rows = nullptr;     ///< [sequences][format.sink_bytes()], or nullptr: no sinks
  f16_bits* k = nullptr;                    ///< [tokens][num_kv_heads][head_dim] f16, not rotated
  f16_bits* v = nullptr;
  int64_t token_stride = 0;  ///< values, a multiple of 8; 0: contiguous
  int64_t head_stride = 0;
  std::byte* row_pages = nullptr;  ///< [pages][format.row_page_bytes()]
  const DequantizeJob* jobs = nullptr;
  int num_jobs = 0;
};

class DequantizePlan {
 public:
  /// Throws Error naming what was asked, what is possible and what to do.
  DequantizePlan(const DequantizeSpec& spec, const Device& device);

  const DequantizeSpec& spec() const { return spec_; }
  std::string Explain() const;
  void Run(const DequantizeArrays& arrays, cudaStream_t stream) const;

 private:
  DequantizeSpec spec_;
  Device device_;
  const void* kernel_ = nullptr;
  int threads_ = 0;
  int shared_bytes_ = 0;
};

}  // namespace kvrazor::cuda
