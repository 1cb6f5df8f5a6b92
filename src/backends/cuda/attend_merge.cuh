// The end of a segment: the consumers' states are merged into the result or into a part of it; the CTA that has the tile's last part merges
// them, always in the order of the tile. A part needs no flag: its words are kNoPart until they are stored, and again after they are read.
#pragma once

#include "src/backends/cuda/attend_config.cuh"
#include "src/backends/cuda/attend_result.cuh"

namespace kvrazor::cuda {

template <class Config>
struct AttendMerge {
  using Shared = typename Config::Shared;
  static constexpr int kDim = Config::kDim, kConsumers = Config::kConsumers, kScratchRow = Config::kScratchRow;

  /// Where row `row` of part `k` of a tile lies that begins in `first_cta`. A CTA has two: of the tile that it begins, and of one begun before.
  __device__ static int64_t PartAt(int first_cta, int k, int row) {
    return (static_cast<int64_t>(k > 0) * gridDim.x + first_cta + k) * kBlockRows + row;
  }
  /// A number that is not kNoPart.
  __device__ static float Storable(float x) { return __float_as_uint(x) == kNoPart ? __uint_as_float(0x7fc00000u) : x; }
  __device__ static float4 Storable(const float4& v) { return make_float4(Storable(v.x), Storable(v.y), Storable(v.z), Storable(v.w)); }
  __device__ static float4 AsFloats(const uint4& v) {
    return make_float4(__uint_as_float(v.x), __uint_as_float(v.y), __uint_as_float(v.z), __uint_as_float(v.w));
  }

  /// By value: a choice between two variables would put both into memory.
  __device__ static float4 Select(bool first, float4 a, float4 b) {
    return make_float4(first ? a.x : b.x, first ? a.y : b.y, first ? a.z : b.z, first ? a.w : b.w);
  }

  /// H v: v is four of a row's channels; the other lanes of the row hold the rest.
  __device__ static float4 Rotate(float4 v) {
    const float4 two = make_float4(v.x + v.y, v.x - v.y, v.z + v.w, v.z - v.w);
    float x[4] = {two.x + two.z, two.y + two.w, two.x - two.z, two.y - two.w};
#pragma unroll
    for (int o = 1; o < kDim / 4; o <<= 1) {
      const float sign = (threadIdx.x & o) ? -1.f : 1.f;
#pragma unroll
      for (int i = 0; i < 4; ++i) x[i] = fmaf(sign, x[i], __shfl_xor_sync(~0u, x[i], o));
    }
    constexpr float kNorm = kHadamardNorm<kDim>;
    return make_float4(x[0] * kNorm, x[1] * kNorm, x[2] * kNorm, x[3] * kNorm);
  }

  /// Parts [begin, end) of a tile in their order, waiting for those that are still missing: a word of a part is kNoPart until its CTA has
  /// stored it.
  __device__ static Part TakeParts(const AttendParams& a, int first_cta, int begin, int end, int row, int channel) {
    constexpr int kDeep = kConsumers == 12 ? 6 : 9;  // in flight; a tile over all 132 multiprocessors of 8 heads has 17 parts, shared by three or two warps
    Part total;
#pragma unroll 1
    for (int base = begin; base < end; base += kDeep) {
      uint2 lse[kDeep];
      uint4 part[kDeep];
      bool missing;
      do {
        missing = false;
#pragma unroll
        for (int i = 0; i < kDeep; ++i) {
          const int64_t at = PartAt(first_cta, min(base + i, end - 1), row);
          lse[i] = LoadRelaxed(reinterpret_cast<const uint2*>(a.partial_lse) + at);
          part[i] = LoadRelaxed(reinterpret_cast<const uint4*>(a.partial_out + at * kDim + channel));
        }
#pragma unroll
        for (int i = 0; i < kDeep; ++i) {
          missing |= lse[i].x == kNoPart || lse[i].y == kNoPart;
          missing |= part[i].x == kNoPart || part[i].y == kNoPart || part[i].z == kNoPart || part[i].w == kNoPart;
        }
      } while (missing);
      float higher = total.top;
#pragma unroll
      for (int i = 0; i < kDeep; ++i) higher = fmaxf(higher, __uint_as_float(lse[i].x));
      total.Rescale(higher);
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        if (base + i < end) total.Add(__uint_as_float(lse[i].x), __uint_as_float(lse[i].y), AsFloats(part[i]));
      }
    }
    return total;
  }

  /// Parts that were read are made missing again, for the next launch.
  __device__ static void ForgetParts(const AttendParams& a, int first_cta, int begin, int end, int row, int channel) {
    __syncwarp();  // a row done twice has been read twice
#pragma unroll 1
    for (int k = begin; k < end; ++k) {
      const int64_t at = PartAt(first_cta, k, row);
      __stcg(reinterpret_cast<uint4*>(a.partial_out + at * kDim + channel), make_uint4(kNoPart, kNoPart, kNoPart, kNoPart));
      if (channel == 0) __stcg(reinterpret_cast<uint2*>(a.partial_lse) + at, make_uint2(kNoPart, kNoPart));
    }
  }

  /// By the consumers of the CTA that has a tile's last part, when they have nothing left to do. It waits for CTAs of lower index only,
  /// which the device has started before this one. Groups of warps take a share of the parts each and meet in the ring, where nothing is
  /// under way any more.
  __device__ static void FinishTile(const AttendParams& a, const Shared& sm, const Segment& segment, int warp) {
    const int first_cta = CtaOf(*sm.line, segment.tile_at + 1), num_parts = static_cast<int>(blockIdx.x) - first_cta + 1;
    const int items = segment.rows * (kDim / 4);
    const int group_warps = min((items + 31) / 32, kConsumers);
    const int num_groups = kConsumers / group_warps, group = warp / group_warps, lane = static_cast<int>(threadIdx.x & 31);
    if (num_groups == 1 && group > 0) return;
    const int each = (num_parts + num_groups - 1) / num_groups;
    float4* outs = reinterpret_cast<float4*>(sm.ring);  // [warps][32 lanes]
    float2* tops = reinterpret_cast<float2*>(outs + kConsumers * 32);
#pragma unroll 1
    for (int base = (warp - group * group_warps) * 32; base < items; base += group_warps * 32) {
      const int item = base + lane, channel = item % (kDim / 4) * 4;
      const int row = min(item / (kDim / 4), segment.rows - 1);  // a warp may do the last one twice
      const int begin = min(group * each, num_parts), end = group < num_groups ? min(begin + each, num_parts) : begin;
      Part total = TakeParts(a, first_cta, begin, end, row, channel);
      if (num_groups > 1) {
        outs[warp * 32 + lane] = total.out;
        tops[warp * 32 + lane] = make_float2(total.top, total.sum);
        NamedBarrier<kMergeBarrier, kConsumers * 32>();
      }
      if (group == 0) {
        for (int g = 1; g < num_groups; ++g) {
          const int at = (g * group_warps + warp) * 32 + lane;
          const float2 other = tops[at];
          total.Rescale(fmaxf(total.top, other.x));
          total.Add(other.x, other.y, outs[at]);
        }
        if constexpr (Config::kRotate) total.out = Rotate(total.out);
        StoreResult<kDim>(a, segment, row, channel, total.top, total.sum, total.out);
      }
      ForgetParts(a, first_cta, begin, end, row, channel);
    }
  }

  /// The states of the consumers in the scratch to the result, or to a part in the pages' basis. By `num_warps` warps, this one is `warp`;
  /// 128 channels of a row a warp.
  __device__ static void MergeStates(const AttendParams& a, const Shared& sm, const Segment& segment, int warp, int num_warps) {
    const bool whole = segment.num_units == segment.tile_units;
    const int items = segment.rows * (kDim / 4);
#pragma unroll 1
    for (int base = warp * 32; base < items; base += num_warps * 32) {
      const int item = base + static_cast<int>(threadIdx.x & 31), channel = item % (kDim / 4) * 4;
      const int row = min(item / (kDim / 4), segment.rows - 1);  // a warp may do the last one twice
      float2 lse[kConsumers];
      float top = kNoLogit, sum = 0;
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) {
        lse[i] = sm.scratch_lse[i * kBlockRows + row];
        top = fmaxf(top, lse[i].x);
      }
      float4 rotated = make_float4(0, 0, 0, 0), plain = make_float4(0, 0, 0, 0);
      bool any_plain = false;
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) {
        const float factor = Exp2(lse[i].x - top);
        const float4 v = *reinterpret_cast<const float4*>(sm.scratch + (i * a.block_rows + row) * kScratchRow + channel);
        sum = fmaf(factor, lse[i].y, sum);
        const bool is_plain = Config::kRotate && !sm.scratch_rotated[i];
        any_plain |= is_plain;
        const float of_rotated = is_plain ? 0.f : factor, of_plain = is_plain ? factor : 0.f;
        rotated = make_float4(fmaf(of_rotated, v.x, rotated.x), fmaf(of_rotated, v.y, rotated.y), fmaf(of_rotated, v.z, rotated.z),
                              fmaf(of_rotated, v.w, rotated.w));
        if constexpr (Config::kRotate) {
          plain = make_float4(fmaf(of_plain, v.x, plain.x), fmaf(of_plain, v.y, plain.y), fmaf(of_plain, v.z, plain.z), fmaf(of_plain, v.w, plain.w));
        }
      }
      float4 out = rotated;
      if constexpr (Config::kRotate) {
        if (whole || any_plain) {  // what is in the other basis is turned and added
          const float4 other = Rotate(Select(whole, rotated, plain)), own = Select(whole, plain, rotated);
          out = make_float4(own.x + other.x, own.y + other.y, own.z + other.z, own.w + other.w);
        }
      }
      if (whole) {
        StoreResult<kDim>(a, segment, row, channel, top, sum, out);
      } else {
        const int64_t at = (static_cast<int64_t>(segment.first_unit != 0) * gridDim.x + blockIdx.x) * kBlockRows + row;
        __stcg(reinterpret_cast<float4*>(a.partial_out + at * kDim + channel), Storable(out));
        if (channel == 0) __stcg(reinterpret_cast<float2*>(a.partial_lse) + at, make_float2(Storable(top), Storable(sum)));
      }
    }
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
