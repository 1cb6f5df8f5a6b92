// How plans refuse: one sentence with the op in front, in the same words for what several ops ask.
#pragma once

#include <cuda_runtime_api.h>

#include <cmath>
#include <cstdint>
#include <string>

#include "kvrazor/error.h"
#include "src/backends/cuda/packed_page.h"

namespace kvrazor::cuda {

inline std::string Text(int64_t x) { return std::to_string(x); }

/// An op, as messages name it.
struct PlanOp {
  const char* name;

  [[noreturn]] void Refuse(const std::string& why) const { throw Error(std::string("cuda ") + name + ": " + why); }
  void Check(cudaError_t error, const char* what) const {
    if (error != cudaSuccess) Refuse(std::string(what) + ": " + cudaGetErrorString(error));
  }

  /// What decoding and prefill ask alike. Spec: AttendSpec, PrefillSpec.
  template <class Spec>
  void CheckAttention(const Spec& s) const {
    constexpr int kMaxBatch = 1024, kMaxGqa = 16;
    const int num_kv_heads = s.format.num_kv_heads;
    if (s.num_qo_heads < 1 || s.num_qo_heads % num_kv_heads != 0 || s.num_qo_heads / num_kv_heads > kMaxGqa) {
      Refuse("num_qo_heads=" + Text(s.num_qo_heads) + " with num_kv_heads=" + Text(num_kv_heads) +
             "; possible are 1 to " + Text(kMaxGqa) + " query heads a kv head.");
    }
    if (s.max_batch_size < 1 || s.max_batch_size > kMaxBatch) {
      Refuse("max_batch_size=" + Text(s.max_batch_size) + "; possible are 1 to " + Text(kMaxBatch) +
             ". Split the batch.");
    }
    if (s.max_pages < 1) Refuse("max_pages=" + Text(s.max_pages) + " must be at least 1.");
    if (s.sink_tokens < 0 || s.sink_tokens > kMaxSinkTokens) {
      Refuse("sink_tokens=" + Text(s.sink_tokens) + "; possible are 0 to " + Text(kMaxSinkTokens) + ".");
    }
    if (s.sliding_window < 0) Refuse("sliding_window=" + Text(s.sliding_window) + " must not be negative; 0 is none.");
    if (!std::isfinite(s.softcap) || s.softcap < 0) Refuse("softcap must be finite and not negative; 0 is none.");
    if (!std::isfinite(s.softmax_scale) || !(s.softmax_scale > 0)) Refuse("softmax_scale must be positive and finite.");
  }
};

}  // namespace kvrazor::cuda
