// Queries on their way into the second moment.
#pragma once

#include <cstdint>

namespace kvrazor::cuda {

struct QueryParams {
  const uint8_t* q;
  int64_t token_bytes, head_bytes;
  int64_t num_rows;  // sampled tokens times query heads of a kv head
  int gqa_ratio, sample;
  float keep;
  float* moment;  // [heads][D][D]
};

/// Of the metric M D / tr M + kMetricDamping I.
inline constexpr float kMetricDamping = 0.2f;

}  // namespace kvrazor::cuda
