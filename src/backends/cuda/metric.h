// The query metric of razor keys on the GPU: the second moment M = sum q q^T of a layer, shared by all sequences, and its factor. Both are
// made when pages are sealed, from a sample of the queries, never token by token.
#pragma once

#include <cstdint>
#include <string>

#include "src/backends/cuda/device.h"
#include "src/backends/cuda/page_convert.h"

namespace kvrazor::cuda {

struct MetricSpec {
  int head_dim = 0;
  int num_kv_heads = 0;
  int num_qo_heads = 0;  ///< a multiple of num_kv_heads
  bool plain = false;    ///< for sealing plain pages, whose kernels read the factor in another order
};

/// Queries in device memory, 16-byte aligned.
struct QuerySample {
  const f16_bits* q = nullptr;  ///< [num_tokens][num_qo_heads][head_dim] f16, after RoPE, not rotated
  int64_t token_stride = 0;     ///< values, a multiple of 8; 0: contiguous
  int64_t head_stride = 0;
  int num_tokens = 0;
  int sample = 1;  ///< every sample-th token is taken, from token 0 on
};

class MetricPlan {
 public:
  /// Throws Error naming what was asked, what is possible and what to do.
  MetricPlan(const MetricSpec& spec, const Device& device);

  const MetricSpec& spec() const { return spec_; }
  std::string Explain() const;
  int64_t moment_bytes() const;  ///< f32 [num_kv_heads][D][D], rotated basis, symmetric; all 0: no query seen
  int64_t metric_bytes() const;  ///< what sealing reads (metric_layout.h, plain_metric.h)

  /// Once per process and device, before the first run (not while capturing).
  void Init() const;
  /// M = keep * M + sum q q^T over the sample, rotated. Queries that are not finite are left out. keep 1: nothing is forgotten.
  void AddQueries(const QuerySample& queries, float keep, float* moment, cudaStream_t stream) const;
  /// Factor of M D / tr M + 0.2 I, for SealArrays::metric. A head whose M says nothing gets the identity.
  void Factor(const float* moment, void* metric, cudaStream_t stream) const;

 private:
  MetricSpec spec_;
  Device device_;
};

}  // namespace kvrazor::cuda
