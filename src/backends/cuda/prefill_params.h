// What the kernels of chunked prefill read and write. Plain pointers; shapes beside them.
#pragma once

#include <cuda.h>

#include <cstdint>

#include "src/backends/cuda/dequantize.h"

namespace kvrazor::cuda {

inline constexpr int kPrefillRows = 128;  // query rows (new token, query head of a kv head) of a tile
/// Tokens of keys and values that a tile takes at once: a block.
constexpr int PrefillBlock(int head_dim) { return head_dim == 256 ? 64 : 128; }

/// A sequence of the run, worked out on the device. Workspace rows row_begin .. row_begin + total are its tokens in order.
struct PrefillSequence {
  int32_t row_begin;  // first workspace row, a multiple of 128; negative: no room
  int32_t kv_len;     // tokens that lie in pages
  int32_t total;      // tokens, the new ones among them
  int32_t new_begin;  // first row of q
  int32_t new_len;
  int32_t first_visible;  // the window hides those before it from every new token
};

/// A page of the workspace whose rows do not all come from one packed page.
struct PrefillPage {
  int32_t sequence;  // negative: nothing to do
  int32_t page;      // of the sequence
};

struct PrefillTile {
  int32_t sequence;
  int32_t index;  // of the sequence's tiles of query rows
};

struct PrefillTiles {
  int32_t count;
  int32_t splits;  // equal shares that a tile's tokens are cut into, a CTA each
  int32_t unused[2];
  PrefillTile tile[1];  // [max_tiles]
};

struct PrefillParams {
  CUtensorMap k_map, v_map;   // of k_rows and v_rows
  const uint8_t* row_pages;   // [pages][num_kv_heads][2][128][D] f16
  const int32_t* page_table;  // [batch_size][table_stride]; negative: ~index of a row page
  const int32_t* kv_len;      // [batch_size]
  const int32_t* new_begin;   // [batch_size + 1]
  const uint16_t* q;          // [new tokens][num_kv_heads * gqa_ratio][D], stride q_stride
  const uint16_t* k;          // [new tokens][num_kv_heads][D], stride kv_stride, or nullptr: in pages
  const uint16_t* v;
  uint16_t* out;             // like q, stride out_stride
  float* lse;                // [new tokens][num_kv_heads * gqa_ratio] or nullptr
  const float* sink_logits;  // [num_kv_heads * gqa_ratio] natural log, or nullptr
  const uint16_t* mask;      // [new tokens][mask_stride] f16, or nullptr
  uint16_t* k_rows;          // [num_kv_heads][workspace_pages * 128][D] f16
  uint16_t* v_rows;
  DequantizeJob* jobs;         // [workspace_pages]
  PrefillPage* pages;          // [workspace_pages]
  PrefillSequence* sequences;  // [batch_size]
  PrefillTiles* tiles;
  uint32_t*
      visible;  // [max_tiles][visible_words] a bit a page: some row of the tile sees some of it; or nullptr: not masked
  float* partial_out;                                    // [max_partials][kPrefillRows][D]
  float* partial_lse;                                    // [max_partials][kPrefillRows][2: maximum (log2), sum]
  int64_t q_stride, kv_stride, out_stride, mask_stride;  // values
  int32_t batch_size;
  int32_t num_kv_heads;
  int32_t gqa_ratio;
  int32_t table_stride;
  int32_t max_new_tokens;
  int32_t max_tiles;
  int32_t workspace_pages;
  int32_t visible_words;
  int32_t sink_tokens;
  int32_t window;  // tokens that a query sees, its own among them; 0: all
  int32_t causal;
  int32_t bf16;
  int32_t num_sms;
  int32_t max_partials;  // items that there is room for where tiles are shared
  float scale_log2;      // softmax_scale * log2(e)
  float softcap_log2;    // softcap * log2(e); 0: none
};

/// Tokens [begin, end) of a sequence that its new token i sees, the mask aside.
__host__ __device__ inline int PrefillVisibleEnd(const PrefillParams& p, const PrefillSequence& s, int i) {
  return p.causal ? s.total - (s.new_len - 1 - i) : s.total;
}
__host__ __device__ inline int PrefillVisibleBegin(const PrefillParams& p, int end) {
  return p.window > 0 && end > p.window ? end - p.window : 0;
}

// Launches. Each throws nothing and returns what the runtime said.
cudaError_t LaunchPrefillSchedule(const PrefillParams& params, cudaStream_t stream);
/// With a mask: which pages a tile of query rows sees anything of.
cudaError_t LaunchPrefillVisible(const PrefillParams& params, cudaStream_t stream);
cudaError_t LaunchPrefillRows(const PrefillParams& params, int head_dim, cudaStream_t stream);
cudaError_t InitPrefillAttend();
cudaError_t LaunchPrefillAttend(const PrefillParams& params, int head_dim, bool special, cudaStream_t stream);

}  // namespace kvrazor::cuda
