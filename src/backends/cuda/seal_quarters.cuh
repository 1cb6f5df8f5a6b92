// Sums of a token over its channels, or of a channel over its tokens, in quarters that are merged as (0, 1), (2, 3): one thread forms all four, or
// four warps form one each. Either way the same sums in the same order, so the bytes of a page do not depend on how many CTAs sealed it.
#pragma once

namespace kvrazor::cuda {

/// In shared memory where four warps share the work, lanes being tokens or channels; used in turns, so that one barrier a call is enough.
template <int kMaxSums>
struct QuarterSums {
  float sums[2][4][kMaxSums][32];
};
struct OneThread {};

/// total = parts of the four quarters: part(quarter, sums) adds to sums of 0, merge(to, from) puts two together.
template <int kCount, class Part, class Merge>
__device__ __forceinline__ void OverQuarters(OneThread, int, float (&total)[kCount], Part part, Merge merge) {
  float pair[kCount] = {}, last[kCount] = {};
#pragma unroll
  for (int i = 0; i < kCount; ++i) total[i] = 0;
  part(0, total);
  part(1, last);
  merge(total, last);
#pragma unroll
  for (int i = 0; i < kCount; ++i) last[i] = 0;
  part(2, pair);
  part(3, last);
  merge(pair, last);
  merge(total, pair);
}
template <int kMaxSums, int kCount, class Part, class Merge>
__device__ __forceinline__ void OverQuarters(QuarterSums<kMaxSums>& shared, int turn, float (&total)[kCount], Part part, Merge merge) {
  static_assert(kCount <= kMaxSums);
  auto& sums = shared.sums[turn & 1];
  const int lane = threadIdx.x & 31, quarter = static_cast<int>(threadIdx.x / 32);
  float first[kCount] = {}, second[kCount], third[kCount];
  part(quarter, first);
#pragma unroll
  for (int i = 0; i < kCount; ++i) sums[quarter][i][lane] = first[i];
  __syncthreads();
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    total[i] = sums[0][i][lane];
    first[i] = sums[1][i][lane];
    second[i] = sums[2][i][lane];
    third[i] = sums[3][i][lane];
  }
  merge(total, first);
  merge(second, third);
  merge(total, second);
}

}  // namespace kvrazor::cuda
