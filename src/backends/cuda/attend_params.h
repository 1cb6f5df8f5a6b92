// What one launch of the decode kernel reads and writes. Plain pointers; shapes beside them.
#pragma once

#include <cstdint>

namespace kvrazor::cuda {

/// The query rows of a sequence and kv head are its new tokens times its query heads, token by token; a tile takes a block of them.
struct AttendParams {
  const uint8_t* packed_pages;  // [pages][num_kv_heads][Page::kBytes]
  const uint8_t* row_pages;     // [pages][num_kv_heads][2][128][D] f16
  const uint8_t* sink_rows;     // [batch_size][num_kv_heads][2][16][D] f16, or nullptr
  const int32_t* page_table;    // [batch_size][table_stride]; negative: ~index of a row page
  const int32_t* kv_len;        // [batch_size] tokens, the new ones among them
  const int32_t* row_start;     // [batch_size] first token of the residual window, a multiple of 128
  const uint16_t* q;            // [batch_size][qo_len][num_kv_heads * gqa_ratio][D], stride q_stride
  uint16_t* out;                // likewise, stride out_stride
  float* lse;                   // [batch_size][qo_len][num_kv_heads * gqa_ratio] or nullptr
  const float* sink_logits;     // [num_kv_heads * gqa_ratio] natural log, or nullptr
  const uint16_t* mask;         // [batch_size][qo_len][mask_stride] f16, added to the logits; or nullptr
  float* partial_out;           // [2][CTAs][kBlockRows][D], kNoPart between launches, like the next
  float* partial_lse;           // [2][CTAs][kBlockRows][2: maximum (log2), sum]
  int64_t q_stride;             // values from one sequence to the next
  int64_t out_stride;
  int64_t mask_stride;  // values from one new token to the next
  int32_t batch_size;
  int32_t num_kv_heads;
  int32_t gqa_ratio;
  int32_t qo_len;
  int32_t block_rows;  // of a tile, at most kBlockRows; the last block may have fewer
  int32_t num_blocks;  // of a kv head
  int32_t table_stride;
  int32_t sink_tokens;  // 0..16
  int32_t window;       // tokens that a query sees, its own among them; 0: all
  int32_t causal;       // a new token does not see those after it
  int32_t bf16;         // q and out are bf16, otherwise f16
  int32_t num_stages;   // of the ring, at least as many as teams
  float scale_log2;     // softmax_scale * log2(e)
  float softcap_log2;   // softcap * log2(e); 0: none
};

}  // namespace kvrazor::cuda
