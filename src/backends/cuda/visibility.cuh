// What the query rows of a tile see of a unit: lengths, causality, sliding window and mask; and softcap, which stands before the mask.
// A lane 4 g + q holds the query rows q + 4 n and of these the tokens 16 j + g + 8 r (tile_state.cuh).
#pragma once

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/schedule.cuh"
#include "src/backends/cuda/tile_state.cuh"

namespace kvrazor::cuda {

/// Tokens [begin, end) of the sequence that new token i sees.
__device__ __forceinline__ int VisibleEnd(const AttendParams& a, int kv_len, int i) { return a.causal ? kv_len - (a.qo_len - 1 - i) : kv_len; }
__device__ __forceinline__ int VisibleBegin(const AttendParams& a, int end) { return a.window > 0 ? max(end - a.window, 0) : 0; }

/// Of one unit.
template <int kTiles>
struct Visible {
  bool plain;        // every row sees every token as it is
  int base;          // the unit's first token in the sequence
  int first, last;   // tokens of the unit
  int kv_len;
  const Segment* segment;

  /// logit (log2) of tokens from + 16 (i / 2) + g + 8 (i % 2) of the unit.
  template <int kCount>
  __device__ __forceinline__ void Finish(const AttendParams& a, float (&logit)[kTiles][kCount], int from) const {
    if (__builtin_expect(plain, true)) return;
    const int g = (threadIdx.x & 31) >> 2;
    constexpr float kLog2E = 1.4426950408889634f;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const int row = segment->block * a.block_rows + (threadIdx.x & 3) + 4 * n;
      const int i = min(row / a.gqa_ratio, a.qo_len - 1);  // new token; a column without a row may see anything
      const int row_end = VisibleEnd(a, kv_len, i);
      const int begin = max(first, VisibleBegin(a, row_end) - base), end = min(last, row_end - base);
      if (a.softcap_log2 > 0) {  // cap tanh(x / cap) = cap - 2 cap / (e^(2 x / cap) + 1)
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const float e = Exp2(logit[n][k] * (2 * kLog2E / a.softcap_log2));
          logit[n][k] = a.softcap_log2 - __fdividef(2 * a.softcap_log2, fminf(e, 1e30f) + 1);
        }
      }
      if (a.mask) {
        const uint16_t* mask = a.mask + (static_cast<int64_t>(segment->sequence) * a.qo_len + i) * a.mask_stride + base;
#pragma unroll
        for (int k = 0; k < kCount; ++k) {
          const int t = from + 16 * (k >> 1) + g + 8 * (k & 1);
          if (t >= begin && t < end) logit[n][k] = fmaf(kLog2E, __half2float(__ushort_as_half(__ldg(mask + t))), logit[n][k]);
        }
      }
#pragma unroll
      for (int k = 0; k < kCount; ++k) {
        const int t = from + 16 * (k >> 1) + g + 8 * (k & 1);
        if (t < begin || t >= end) logit[n][k] = kHidden;
      }
    }
  }
};

/// Of a unit in the ring: nothing but `plain` is read unless it has to be.
template <int kTiles>
struct StageVisible {
  bool plain;
  const StageInfo* unit;
  const SegmentInfo* info;
  int done = 0;  // tokens of the unit that were taken before

  template <int kCount>
  __device__ __forceinline__ void Finish(const AttendParams& a, float (&logit)[kTiles][kCount], int from) const {
    if (__builtin_expect(plain, true)) return;
    const int first = static_cast<int>(unit->tokens & 0xffff), last = static_cast<int>(unit->tokens >> 16);
    Visible<kTiles>{false, unit->base + done, first, last - done, info->kv_len, &info->segment}.Finish(a, logit, from);
  }
};

}  // namespace kvrazor::cuda
