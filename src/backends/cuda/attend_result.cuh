// Where the result of a query row goes, and how parts of one are put together: what all attention kernels end with.
#pragma once

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/ptx.cuh"
#include "src/backends/cuda/schedule.cuh"
#include "src/backends/cuda/tile_state.cuh"

namespace kvrazor::cuda {

struct QueryRow {
  int token, head;  // new token; of all query heads

  __device__ QueryRow(const AttendParams& a, const Segment& segment, int row) {
    const int all = segment.block * a.block_rows + row;
    token = a.qo_len == 1 ? 0 : all / a.gqa_ratio;
    head = segment.kv_head * a.gqa_ratio + all - token * a.gqa_ratio;
  }
  /// Of the row in [qo_len][heads].
  __device__ int64_t Index(const AttendParams& a) const { return static_cast<int64_t>(token) * a.num_kv_heads * a.gqa_ratio + head; }
};

/// A running sum of partial results for four channels of one head.
struct Part {
  float top = kNoLogit, sum = 0;
  float4 out = {0, 0, 0, 0};

  __device__ void Rescale(float higher) {
    const float factor = Exp2(top - higher);
    top = higher;
    sum *= factor;
    out = make_float4(out.x * factor, out.y * factor, out.z * factor, out.w * factor);
  }
  __device__ void Add(float other_top, float other_sum, const float4& o) {  // other_top <= top
    const float w = Exp2(other_top - top);
    sum = fmaf(w, other_sum, sum);
    out = make_float4(fmaf(w, o.x, out.x), fmaf(w, o.y, out.y), fmaf(w, o.z, out.z), fmaf(w, o.w, out.w));
  }
};

/// Four channels of a row: the learned sink joins, the sum divides. Channel 0 stores the row's lse.
template <int kDim>
__device__ void StoreResult(const AttendParams& a, const Segment& segment, int row, int channel, float top, float sum, float4 o) {
  const QueryRow query(a, segment, row);
  if (a.sink_logits) {  // a learned logit without a value
    constexpr float kLog2E = 1.4426950408889634f;
    const float sink = __ldg(a.sink_logits + query.head) * kLog2E;
    const float higher = fmaxf(top, sink), factor = Exp2(top - higher);
    sum = fmaf(sum, factor, Exp2(sink - higher));
    o = make_float4(o.x * factor, o.y * factor, o.z * factor, o.w * factor);
    top = higher;
  }
  const float inverse = sum > 0 ? __fdividef(1.f, sum) : 0.f;
  o = make_float4(o.x * inverse, o.y * inverse, o.z * inverse, o.w * inverse);
  uint16_t* to = a.out + segment.sequence * a.out_stride + query.Index(a) * kDim + channel;
  *reinterpret_cast<uint2*>(to) = a.bf16 ? make_uint2(PackBf16(o.x, o.y), PackBf16(o.z, o.w)) : make_uint2(PackF16(o.x, o.y), PackF16(o.z, o.w));
  if (a.lse && channel == 0) {
    constexpr float kLn2 = 0.6931471805599453f;
    const int64_t rows = static_cast<int64_t>(a.qo_len) * a.num_kv_heads * a.gqa_ratio;
    a.lse[segment.sequence * rows + query.Index(a)] = sum > 0 ? (top + log2f(sum)) * kLn2 : -INFINITY;
  }
}

}  // namespace kvrazor::cuda
