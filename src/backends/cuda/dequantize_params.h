// What one launch of a dequantizing kernel reads and writes.
#pragma once

#include "src/backends/cuda/dequantize_job.h"

namespace kvrazor::cuda {

struct DequantizeParams {
  const uint8_t* packed_pages;
  const uint8_t* sink_rows;
  uint8_t* k;
  uint8_t* v;
  uint8_t* row_pages;
  const DequantizeJob* jobs;
  int64_t token_bytes, head_bytes, packed_head_bytes;
  int32_t num_kv_heads;
  bool rotate;
};

}  // namespace kvrazor::cuda
