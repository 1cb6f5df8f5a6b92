// What one launch of the decode kernel reads and writes. Plain pointers; shapes beside them.
#pragma once

#include <cstdint>

namespace kvrazor::cuda {

struct AttendParams {
  const uint8_t* packed_pages;  // [pages][num_kv_heads][Page::kBytes]
  const uint8_t* row_pages;     // [pages][num_kv_heads][2][128][D] f16
  const uint8_t* sink_rows;     // [batch_size][num_kv_heads][2][16][D] f16, or nullptr
  const int32_t* page_table;    // [batch_size][table_stride]; negative: ~index of a row page
  const int32_t* kv_len;        // [batch_size] tokens, all of them visible
  const int32_t* row_start;     // [batch_size] first token of the residual window, a multiple of 128
  const uint16_t* q;            // [batch_size][num_kv_heads * gqa_ratio][D] f16, stride q_stride
  uint16_t* out;                // likewise, stride out_stride
  float* lse;                   // [batch_size][num_kv_heads * gqa_ratio] or nullptr
  float* partial_out;           // [2][CTAs][8][D]
  float* partial_lse;           // [2][CTAs][8][2: maximum (log2), sum]
  int32_t* arrivals;            // [batch_size * num_kv_heads], 0 between launches
  int64_t q_stride;             // f16 values from one sequence to the next
  int64_t out_stride;
  int32_t batch_size;
  int32_t num_kv_heads;
  int32_t gqa_ratio;
  int32_t table_stride;
  int32_t sink_tokens;  // 0..16
  int32_t num_stages;   // of the ring, a multiple of the consumer warps
  float scale_log2;     // softmax_scale * log2(e)
};

}  // namespace kvrazor::cuda
