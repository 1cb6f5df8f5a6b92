// Chunked prefill on the GPU: many new tokens a sequence against its packed pages, 16-bit rows and sinks, and against themselves. Pages are read
// back to 16 bits once, into a workspace that all layers share, and a flash attention kernel on Hopper's warpgroup products reads
// those rows. A plan checks everything; a run only launches kernels: no allocation, no wait for the device, so it can be captured in a
// CUDA graph and replayed after lengths, page tables and pages changed in device memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "src/backends/cuda/dequantize.h"
#include "src/backends/cuda/device.h"
#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {

struct PrefillSpec {
  PackedFormat format;
  int num_qo_heads = 0;  ///< a multiple of num_kv_heads, at most 16 times as many
  int max_batch_size = 0;
  int max_pages = 0;       ///< entries of a page table row; kv_len beyond 128 * max_pages is cut off there
  int max_new_tokens = 0;  ///< of all sequences of a run together
  /// Tokens that the workspace has room for: the lengths of a run's sequences, the new tokens among them, each rounded up to pages. 0: enough for
  /// max_batch_size sequences of max_pages. A sequence that finds no room left gets NaN, in out and lse (lengths are known to the device only).
  int64_t workspace_tokens = 0;
  int sink_tokens = 0;  ///< first tokens of every sequence, read from sink rows when their page is sealed; at most 16
  float softmax_scale = 0;
  /// The new tokens' rows are in the pages already, the last of kv_len. Otherwise they come as k and v, behind the kv_len tokens in pages.
  bool new_rows_in_pages = false;
  bool causal = true;          ///< a new token does not see those after it; false where the mask says what is seen
  int sliding_window = 0;      ///< tokens a new one sees, itself among them; 0: all
  float softcap = 0;           ///< logits become softcap * tanh(logit / softcap), before the mask; 0: as they are
  bool masked = false;         ///< a mask is added to the logits
  bool learned_sinks = false;  ///< a logit a query head joins the softmax denominator
  bool bf16 = false;           ///< q, k, v and out are bf16; rows of pages stay f16, k and v become f16 (saturated)
};

/// Device memory of one run; 16-byte aligned.
struct PrefillArrays {
  const std::byte* packed_pages = nullptr;  ///< [pages][format.page_bytes()], or nullptr: the tables name none
  const std::byte* row_pages = nullptr;     ///< [pages][format.row_page_bytes()]
  const std::byte* sink_rows = nullptr;     ///< [batch_size][format.sink_bytes()], or nullptr with sink_tokens 0
  const int32_t* page_table =
      nullptr;  ///< [batch_size][max_pages]; >= 0: packed page; < 0: row page ~entry. Any mix and order
  const int32_t* kv_len = nullptr;     ///< [batch_size] tokens in pages
  const int32_t* new_begin = nullptr;  ///< [batch_size + 1] rows new_begin[b] to new_begin[b + 1] of q are sequence b's
  const f16_bits* q = nullptr;         ///< [new tokens][num_qo_heads][head_dim] after RoPE, not rotated; f16 or bf16
  const f16_bits* k = nullptr;  ///< [new tokens][num_kv_heads][head_dim], k after RoPE; nullptr with new_rows_in_pages
  const f16_bits* v = nullptr;
  f16_bits* out = nullptr;  ///< like q; rows behind new_begin[batch_size] are not written
  float* lse = nullptr;     ///< [new tokens][num_qo_heads] natural log of the softmax denominator, or nullptr
  const float* sink_logits = nullptr;  ///< [num_qo_heads] with learned_sinks
  const f16_bits* mask = nullptr;      ///< [new tokens][mask_stride] with masked; -inf hides
  void* workspace = nullptr;           ///< workspace_bytes(); what it holds does not matter; one run at a time
  int64_t q_stride = 0;                ///< values from one token to the next, a multiple of 8; 0: contiguous
  int64_t out_stride = 0;
  int64_t kv_stride = 0;    ///< of k and v
  int64_t mask_stride = 0;  ///< a multiple of 8 and at least the longest sequence
  int batch_size = 0;
};

class PrefillPlan {
 public:
  /// Throws Error naming what was asked, what is possible and what to do.
  PrefillPlan(const PrefillSpec& spec, const Device& device);

  const PrefillSpec& spec() const { return spec_; }
  int64_t workspace_bytes() const;
  /// The kernels and their schedule in words.
  std::string Explain() const;

  /// Once per process and device, before the first run (not while capturing).
  void Init() const;
  /// Enqueues the attention. Throws Error if an argument is impossible or a launch is refused.
  void Run(const PrefillArrays& arrays, cudaStream_t stream) const;

 private:
  /// Bytes of the workspace's parts, in this order.
  struct Parts {
    int64_t k, v, jobs, pages, sequences, tiles, visible, partial_out, partial_lse;
    int64_t total() const { return k + v + jobs + pages + sequences + tiles + visible + partial_out + partial_lse; }
  };
  Parts MakeParts() const;
  int64_t workspace_pages() const;
  int64_t max_tiles() const;
  int64_t visible_words() const;

  PrefillSpec spec_;
  Device device_;
  DequantizePlan dequantize_;
  int gqa_ratio_ = 0;
  bool special_ = false;  // softcap or mask: logits are finished one by one
};

}  // namespace kvrazor::cuda
