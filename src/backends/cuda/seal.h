// Sealing on the GPU: many pages in one pass, each key and value read once. And `append`, the same launch with the rows of new tokens in
// front: they are stored to row pages while pages that leave the window are sealed. A plan checks everything and picks the kernel; a run
// only launches it: no allocation, no wait for the device, so it can be captured in a CUDA graph and replayed after rows, slots and jobs
// changed in device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "src/backends/cuda/device.h"
#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/seal_instance.h"
#include "src/backends/cuda/seal_job.h"

namespace kvrazor::cuda {

struct SealSpec {
  PackedFormat format;
  int max_jobs = 0;    ///< pages of one run, at most 65535; 0 with max_tokens: append without sealing
  int max_tokens = 0;  ///< new tokens of one append; 0: the plan only seals
  bool bf16 = false;   ///< new tokens come in bf16, stored as f16 (saturated)
};

/// Device memory of one run; 16-byte aligned.
struct SealArrays {
  /// Rows [tokens][num_kv_heads][head_dim] f16 as the model wrote them (k after RoPE), not rotated; read by jobs with source >= 0.
  const f16_bits* k = nullptr;
  const f16_bits* v = nullptr;
  int64_t token_stride = 0;              ///< values, a multiple of 8; 0: contiguous
  int64_t head_stride = 0;               ///< values, a multiple of 8; 0: contiguous
  const std::byte* row_pages = nullptr;  ///< [pages][format.row_page_bytes()]; read by jobs with source < 0
  std::byte* packed_pages = nullptr;     ///< [pages][format.page_bytes()]
  std::byte* sink_rows = nullptr;        ///< [sequences][format.sink_bytes()], or nullptr: SealJob::sink is not read
  int32_t* page_table = nullptr;         ///< or nullptr: SealJob::table_entry is not read
  const SealJob* jobs = nullptr;         ///< [num_jobs]
  int num_jobs = 0;
  /// Razor: what MetricPlan::Factor wrote (metric.h; of plain pages with MetricSpec::plain), or nullptr: the identity, as before any query was seen.
  const void* metric = nullptr;
};

/// New tokens: rows and where each goes.
struct AppendArrays {
  const void* k = nullptr;  ///< [num_tokens][num_kv_heads][head_dim] f16 or bf16, k after RoPE
  const void* v = nullptr;
  int64_t token_stride = 0;  ///< values, a multiple of 8; 0: contiguous
  int64_t head_stride = 0;
  const int32_t* slots =
      nullptr;  ///< [num_tokens] 128 * row page + token in it; negative or beyond the pool: not stored
  std::byte* row_pages = nullptr;  ///< [num_row_pages][format.row_page_bytes()]
  int num_row_pages = 0;
  int num_tokens = 0;
};

class SealPlan {
 public:
  /// Throws Error naming what was asked, what is possible and what to do.
  SealPlan(const SealSpec& spec, const Device& device);

  const SealSpec& spec() const { return spec_; }
  /// The kernel and what it does in words.
  std::string Explain() const;

  /// Once per process and device, before the first run (not while capturing).
  void Init() const;
  /// Enqueues the sealing of arrays.num_jobs pages. Throws Error if an argument is impossible or the launch is refused.
  void Run(const SealArrays& arrays, cudaStream_t stream) const;
  /// Enqueues one launch that stores new rows and seals pages. A page that is sealed must not get rows in the same run.
  void Append(const AppendArrays& tokens, const SealArrays& arrays, cudaStream_t stream) const;

 private:
  void Launch(const AppendArrays* tokens, const SealArrays& arrays, cudaStream_t stream) const;

  SealSpec spec_;
  Device device_;
  SealInstance instance_{};
  bool token_scale_ = false;
  bool cluster_ = false;
};

}  // namespace kvrazor::cuda
