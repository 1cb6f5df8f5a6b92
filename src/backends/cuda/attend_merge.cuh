// The end of a segment: the consumers' states are merged into the result or into a partial; the last CTA to arrive at a tile merges its
// parts, always in the order of the tile.
#pragma once

#include "src/backends/cuda/attend_config.cuh"

namespace kvrazor::cuda {

template <class Config>
struct AttendMerge {
  using Shared = typename Config::Shared;
  static constexpr int kDim = Config::kDim, kConsumers = Config::kConsumers, kScratchRow = Config::kScratchRow;

  __device__ static void StoreResult(const AttendParams& a, const Segment& segment, int row, int channel, float top, float sum, float4 o) {
    const typename Config::QueryRow query(a, segment, row);
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

  /// Parts `group`, group + kMergeGroups, ... of a tile.
  __device__ static Part ReadParts(const AttendParams& a, int first_cta, int num_parts, int row, int channel, int group) {
    constexpr int kDeep = 9;  // in flight; a tile over all 132 multiprocessors of 8 heads has 17 parts
    Part total;
#pragma unroll 1
    for (int base = group; base < num_parts; base += kDeep * kMergeGroups) {
      float2 lse[kDeep];
      float4 part[kDeep];
      float higher = total.top;
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        const int k = base + i * kMergeGroups;
        lse[i] = make_float2(kNoLogit, 0);
        part[i] = make_float4(0, 0, 0, 0);
        if (k < num_parts) {
          const int64_t at = (static_cast<int64_t>(k == 0) * gridDim.x + first_cta + k) * kBlockRows + row;
          lse[i] = __ldcg(reinterpret_cast<const float2*>(a.partial_lse) + at);
          part[i] = __ldcg(reinterpret_cast<const float4*>(a.partial_out + at * kDim + channel));
        }
      }
#pragma unroll
      for (int i = 0; i < kDeep; ++i) higher = fmaxf(higher, lse[i].x);
      total.Rescale(higher);
#pragma unroll
      for (int i = 0; i < kDeep; ++i) total.Add(lse[i].x, lse[i].y, part[i]);
    }
    return total;
  }

  /// The groups joined in their order: the same arithmetic whoever merges.
  __device__ static void StoreGroups(const AttendParams& a, const Segment& segment, int row, int channel, const Part (&groups)[kMergeGroups]) {
    Part total;
    float higher = kNoLogit;
#pragma unroll
    for (int i = 0; i < kMergeGroups; ++i) higher = fmaxf(higher, groups[i].top);
    total.Rescale(higher);
#pragma unroll
    for (int i = 0; i < kMergeGroups; ++i) total.Add(groups[i].top, groups[i].sum, groups[i].out);
    StoreResult(a, segment, row, channel, total.top, total.sum, total.out);
  }

  /// By the mergers, while the consumers work on.
  __device__ static void MergeParts(const AttendParams& a, const Segment& segment, int first_cta, int num_parts, int thread) {
#pragma unroll 1
    for (int x = thread; x < segment.rows * (kDim / 4); x += kMergers * 32) {
      const int row = x / (kDim / 4), channel = x % (kDim / 4) * 4;
      Part groups[kMergeGroups];
      for (int i = 0; i < kMergeGroups; ++i) groups[i] = ReadParts(a, first_cta, num_parts, row, channel, i);
      StoreGroups(a, segment, row, channel, groups);
    }
  }

  /// By the consumers, which have nothing left to do: a group a thread, joined through the scratch.
  __device__ static void MergePartsAtEnd(const AttendParams& a, const Shared& sm, const Segment& segment, int thread) {
    const int first_cta = sm.arrival[1], num_parts = sm.arrival[2];
    const int items = segment.rows * (kDim / 4);
    float* exchange = sm.scratch;  // [groups - 1][items][8]; groups * items * 32 bytes fit in the scratch
#pragma unroll 1
    for (int x = thread; x < items * kMergeGroups; x += kConsumers * 32) {
      const int item = x % items, group = x / items;
      const Part p = ReadParts(a, first_cta, num_parts, item / (kDim / 4), item % (kDim / 4) * 4, group);
      *reinterpret_cast<float4*>(exchange + x * 8) = p.out;
      *reinterpret_cast<float2*>(exchange + x * 8 + 4) = make_float2(p.top, p.sum);
    }
    NamedBarrier<3, kConsumers * 32>();
    for (int item = thread; item < items; item += kConsumers * 32) {
      Part groups[kMergeGroups];
#pragma unroll
      for (int i = 0; i < kMergeGroups; ++i) {
        const float* from = exchange + (i * items + item) * 8;
        const float2 lse = *reinterpret_cast<const float2*>(from + 4);
        groups[i].out = *reinterpret_cast<const float4*>(from);
        groups[i].top = lse.x;
        groups[i].sum = lse.y;
      }
      StoreGroups(a, segment, item / (kDim / 4), item % (kDim / 4) * 4, groups);
    }
  }

  /// The states of the consumers in the scratch to the result or to a partial.
  __device__ static void MergeSegment(const AttendParams& a, const Shared& sm, const Segment& segment, bool is_last_segment, int thread) {
#pragma unroll 1
    for (int x = thread; x < kConsumers * segment.rows; x += kMergers * 32) {
      const int row = x / kConsumers, warp = x % kConsumers;
      float top = kNoLogit;
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) top = fmaxf(top, sm.scratch_lse[i * kBlockRows + row].x);
      const float2 lse = sm.scratch_lse[warp * kBlockRows + row];
      const float factor = Exp2(lse.x - top);
      sm.merge_weight[row * kConsumers + warp] = make_float2(factor, factor * lse.y);
      if (warp == 0) sm.merge_top[row] = top;
    }
    NamedBarrier<1, kMergers * 32>();
    const bool whole = segment.num_units == segment.tile_units;
#pragma unroll 1
    for (int x = thread; x < segment.rows * (kDim / 4); x += kMergers * 32) {
      const int row = x / (kDim / 4), channel = x % (kDim / 4) * 4;
      float sum = 0;
      float4 out = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) {
        const float2 w = sm.merge_weight[row * kConsumers + i];
        const float4 v = *reinterpret_cast<const float4*>(sm.scratch + (i * a.block_rows + row) * kScratchRow + channel);
        sum += w.y;
        out = make_float4(fmaf(w.x, v.x, out.x), fmaf(w.x, v.y, out.y), fmaf(w.x, v.z, out.z), fmaf(w.x, v.w, out.w));
      }
      const float top = sm.merge_top[row];
      if (whole) {
        StoreResult(a, segment, row, channel, top, sum, out);
      } else {
        const int64_t at = (static_cast<int64_t>(segment.first_unit == 0) * gridDim.x + blockIdx.x) * kBlockRows + row;
        __stcg(reinterpret_cast<float4*>(a.partial_out + at * kDim + channel), out);
        if (channel == 0) __stcg(reinterpret_cast<float2*>(a.partial_lse) + at, make_float2(top, sum));
      }
    }
    WarpArrive(sm.scratch_empty);
    NamedBarrier<1, kMergers * 32>();
    if (whole) return;

    const int first_cta = CtaOf(*sm.line, segment.tile_at + 1);
    const int num_parts = CtaOf(*sm.line, segment.tile_at + segment.tile_units) - first_cta + 1;
    if (thread == 0) {
      int32_t* arrivals = a.arrivals + segment.sequence * a.num_kv_heads * a.num_blocks + segment.kv_head * a.num_blocks + segment.block;
      const bool last = AddAcquireRelease(arrivals, 1) == num_parts - 1;
      if (last) *arrivals = 0;
      sm.arrival[0] = last;
      sm.arrival[1] = first_cta;
      sm.arrival[2] = num_parts;
    }
    NamedBarrier<1, kMergers * 32>();
    if (is_last_segment) {
      NamedBarrierArrive<2, (kConsumers + kMergers) * 32>();  // the consumers do it
    } else if (sm.arrival[0]) {
      MergeParts(a, segment, first_cta, num_parts, thread);
    }
    NamedBarrier<1, kMergers * 32>();
  }

  /// Sequences without a token: result 0, lse that of the learned sinks, or -inf.
  __device__ static void StoreEmpty(const AttendParams& a, const Shared& sm, int thread) {
    const int heads = a.qo_len * a.num_kv_heads * a.gqa_ratio;
    for (int b = blockIdx.x; b < a.batch_size; b += gridDim.x) {
      if (sm.sequences[b].weight != 0) continue;
      for (int i = thread; i < heads * kDim / 4; i += kMergers * 32) *reinterpret_cast<uint2*>(a.out + b * a.out_stride + 4 * i) = make_uint2(0, 0);
      if (!a.lse) continue;
      for (int i = thread; i < heads; i += kMergers * 32) {
        a.lse[static_cast<int64_t>(b) * heads + i] = a.sink_logits ? __ldg(a.sink_logits + i % (a.num_kv_heads * a.gqa_ratio)) : -INFINITY;
      }
    }
  }
};

}  // namespace kvrazor::cuda
