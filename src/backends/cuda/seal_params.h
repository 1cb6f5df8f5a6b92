// What one launch of the sealing kernel reads and writes. Plain pointers; shapes beside them.
#pragma once

#include <cstdint>

#include "src/backends/cuda/seal_job.h"

namespace kvrazor::cuda {

/// Rows of 16-bit values in device memory.
struct SealRows {
  const uint8_t* k;          // [tokens][num_kv_heads][D] f16
  const uint8_t* v;          // likewise
  int64_t token_bytes;       // from one token to the next
  int64_t head_bytes;        // from one head to the next
  const uint8_t* row_pages;  // [pages][num_kv_heads][2][128][D] f16, swizzled (packed_page.h)
};

/// New rows to put into row pages: the first part of an append.
struct StoreRows {
  const uint8_t* k;      // [num_tokens][num_kv_heads][D] f16 or bf16
  const uint8_t* v;      // likewise
  int64_t token_bytes;   // from one token to the next
  int64_t head_bytes;    // from one head to the next
  const int32_t* slots;  // [num_tokens] 128 * row page + token in it; negative: not stored
  uint8_t* row_pages;    // as SealRows::row_pages
  int32_t num_tokens;    // 0: none
  int32_t num_slots;     // of the pool; slots from here on are not stored
  int32_t num_blocks;    // CTAs along y that store, in front of the jobs
  bool is_bf16;
};

inline constexpr int kMaxClusterHeads = 8;  // the largest cluster that every device takes

struct SealParams {
  SealRows rows;
  StoreRows store;
  const SealJob* jobs;  // [num_jobs]
  int32_t num_jobs;
  const uint8_t* metric;  // MetricLayout bytes a head, or nullptr: the identity
  uint8_t* packed_pages;  // [pages][num_kv_heads][head_bytes]
  uint8_t* sink_rows;     // [sequences][num_kv_heads][2][16][D] f16, or nullptr
  int32_t* page_table;    // or nullptr
  int64_t packed_head_bytes;
  int32_t num_kv_heads;
  int32_t key_group_size;    // affine
  int32_t value_group_size;  // affine
  bool key_float_min;        // affine: ZeroPoint::kFloatMin, else kRounded
  bool value_float_min;
  bool token_scale;       // affine keys: norms over all kv heads
  bool norms_in_cluster;  // they are summed by the cluster; else each CTA reads all heads
  bool rotate;
};

}  // namespace kvrazor::cuda
