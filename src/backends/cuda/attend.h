// Decode attention on the GPU: one new token a sequence, or a few, against packed pages, 16-bit rows and sinks. A plan checks everything and picks
// the kernel; a run only launches it: no allocation, no wait for the device, so it can be captured in a CUDA graph and replayed after
// lengths, page tables, queries and pages changed in device memory. Packed pages are read as they are; plain pages are decoded first, in the
// same launch (plain_attend.cuh), and Explain says "by composition".
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>

#include "src/backends/cuda/attend_instance.h"
#include "src/backends/cuda/device.h"
#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/plain_attend.h"

namespace kvrazor::cuda {

struct AttendSpec {
  PackedFormat format;
  int num_qo_heads = 0;  ///< a multiple of num_kv_heads, at most 16 times as many
  int max_batch_size = 0;
  int max_pages = 0;    ///< entries of a page table row; kv_len beyond 128 * max_pages is cut off there
  int sink_tokens = 0;  ///< first tokens of every sequence, read from sink rows when their page is sealed; at most 16
  float softmax_scale = 0;
  int qo_len = 1;              ///< new tokens of every sequence, at most 8; they are the last of its kv_len
  bool causal = true;          ///< a new token does not see those after it; false where the mask says what is seen
  int sliding_window = 0;      ///< tokens a new one sees, itself among them; 0: all
  float softcap = 0;           ///< logits become softcap * tanh(logit / softcap), before the mask; 0: as they are
  bool masked = false;         ///< a mask is added to the logits; pages that it hides from every new token are not read
  bool learned_sinks = false;  ///< a logit a query head joins the softmax denominator
  bool bf16 = false;           ///< q and out are bf16; rows stay f16
  int ring_stages = 0;         ///< pages in flight a multiprocessor, at least as many as consumer teams; 0: chosen
  /// The kernel's start may overlap the end of the kernel before it in the stream (programmatic dependent launch). It still waits for
  /// that kernel before it reads or writes global memory.
  bool programmatic_launch = true;
};

/// Device memory of one run; 16-byte aligned.
struct AttendArrays {
  const std::byte* packed_pages = nullptr;  ///< [pages][format.page_bytes()]
  const std::byte* row_pages = nullptr;     ///< [pages][format.row_page_bytes()]
  const std::byte* sink_rows = nullptr;     ///< [batch_size][format.sink_bytes()], or nullptr with sink_tokens 0
  const int32_t* page_table =
      nullptr;  ///< [batch_size][max_pages]; >= 0: packed page; < 0: row page ~entry. Any mix and order
  const int32_t* kv_len =
      nullptr;  ///< [batch_size] tokens held and seen, the new one among them; 0: output 0, lse -inf
  /// [batch_size] first token of the residual window, a multiple of 128 (or anything from kv_len up: none). Only speed depends on it:
  /// the work of the pages behind it is shared out 16 tokens at a time; a row page in front of it is read by one warp.
  const int32_t* row_start = nullptr;
  const f16_bits* q = nullptr;  ///< [batch_size][qo_len][num_qo_heads][head_dim] after RoPE, not rotated; f16 or bf16
  f16_bits* out = nullptr;      ///< likewise, not rotated
  float* lse = nullptr;  ///< [batch_size][qo_len][num_qo_heads] natural log of the softmax denominator, or nullptr
  const float* sink_logits = nullptr;  ///< [num_qo_heads] with learned_sinks
  const f16_bits* mask = nullptr;      ///< [batch_size][qo_len][mask_stride] with masked; -inf hides
  void* workspace = nullptr;           ///< workspace_bytes(), initialized once; one run at a time
  int64_t q_stride = 0;                ///< values from one sequence to the next, a multiple of 8; 0: contiguous
  int64_t out_stride = 0;
  int64_t mask_stride = 0;  ///< values from one new token to the next, a multiple of 8 and at least the longest kv_len
  int batch_size = 0;
};

class AttendPlan {
 public:
  /// Throws Error naming what was asked, what is possible and what to do.
  AttendPlan(const AttendSpec& spec, const Device& device);

  const AttendSpec& spec() const { return spec_; }
  int64_t workspace_bytes() const;
  /// The kernel and its schedule in words.
  std::string Explain() const;

  /// Once per workspace, before the first run (not while capturing).
  void InitWorkspace(void* workspace, cudaStream_t stream) const;
  /// Enqueues the attention. Throws Error if an argument is impossible or the launch is refused.
  void Run(const AttendArrays& arrays, cudaStream_t stream) const;

 private:
  int64_t num_partials() const;

  AttendSpec spec_;
  Device device_;
  AttendInstance instance_{};
  std::optional<PlainAttendPlan> plain_;  // of plain pages; the rest is then not used
  int gqa_ratio_ = 0;
  int num_blocks_ = 0;  // of query rows (new token, query head) of a kv head, each of block_rows_
  int block_rows_ = 0;
  int num_stages_ = 0;
  int shared_bytes_ = 0;
};

}  // namespace kvrazor::cuda
