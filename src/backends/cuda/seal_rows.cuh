// Rows of a page on their way into registers: load, replace what is not finite, rotate. A thread holds a few tokens and, of each, some
// chunks of 8 channels; the Hadamard stages between its own values are additions, those between threads are shuffles.
//
//   channel bit   0 1 2        in a chunk                       registers
//                 3 ...        chunk index: RowTile says which bits are registers and which are lanes
//
// Stages run from the lowest channel bit to the highest, as on the CPU (backends/cpu/hadamard-inl.h): the same sums in the same order.
#pragma once

#include <cuda_fp16.h>

#include <cstdint>

#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/seal_params.h"

namespace kvrazor::cuda {

/// The 128 rows of one head and side.
struct RowSource {
  const uint8_t* base;
  int64_t token_bytes;
  int swizzle;  // 7 for row pages, else 0

  __device__ const uint8_t* At(int token, int chunk) const { return base + token * token_bytes + ((chunk ^ (token & swizzle)) * 16); }
  __device__ uint4 Chunk(int token, int chunk) const {
    uint4 v;
    asm("ld.global.nc.L2::128B.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(At(token, chunk)));
    return v;
  }
};

// The barrier of a cluster, in halves: what a thread wrote to shared memory before it arrives is seen by all threads after their wait. The
// second arrival only says that others' shared memory has been read.
__device__ __forceinline__ void ClusterArrive() { asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory"); }
__device__ __forceinline__ void ClusterArriveRead() { asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory"); }
__device__ __forceinline__ void ClusterWait() { asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory"); }

/// An address of this CTA's shared memory, as that of CTA `rank` of the cluster.
__device__ __forceinline__ uint32_t InCluster(uint32_t address, int rank) {
  uint32_t there;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(address), "r"(rank));
  return there;
}
/// Stores to another CTA's shared memory; its barrier counts the bytes.
__device__ __forceinline__ void SendToCluster(uint32_t to, float x, uint32_t barrier) {
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];" ::"r"(to), "r"(__float_as_uint(x)), "r"(barrier)
               : "memory");
}
/// Global to shared memory, 16-byte aligned, completes on the barrier; what is read stays in the second-level cache.
__device__ __forceinline__ void BulkCopyKept(uint32_t to, const void* from, int bytes, uint32_t barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(to), "l"(from), "r"(bytes), "r"(barrier)
               : "memory");
}

template <int kDim>
__device__ __forceinline__ RowSource MakeRowSource(const SealRows& rows, const SealJob& job, int num_kv_heads, int head, int side) {
  if (job.source < 0) {
    const int64_t block = (int64_t{~job.source} * num_kv_heads + head) * 2 + side;
    return {rows.row_pages + block * (kTokens * 2 * kDim), 2 * kDim, 7};
  }
  return {(side == 0 ? rows.k : rows.v) + job.source * rows.token_bytes + head * rows.head_bytes, rows.token_bytes, 0};
}

/// The first job from `from` on, in steps of `step`, that has a target; num_jobs if none. The same for all threads of a warp and CTA.
__device__ __forceinline__ int NextJob(const SealJob* jobs, int num_jobs, int from, int step) {
  for (int first = from; first < num_jobs; first += 32 * step) {
    const int i = first + static_cast<int>(threadIdx.x & 31) * step;
    const unsigned found = __ballot_sync(~0u, i < num_jobs && jobs[i].target >= 0);
    if (found) return first + (__ffs(found) - 1) * step;
  }
  return num_jobs;
}

__device__ __forceinline__ bool IsExact(const SealJob& job, int token) {
  // No index into the job: it stays in registers.
  const uint32_t first = token < 32 ? job.exact[0] : job.exact[1], second = token < 96 ? job.exact[2] : job.exact[3];
  return ((token < 64 ? first : second) >> (token % 32)) & 1;
}
__device__ __forceinline__ bool AnyExact(const SealJob& job) {
  return (job.exact[0] | job.exact[1] | job.exact[2] | job.exact[3]) != 0;
}

__device__ __forceinline__ half2 AsHalf2(uint32_t w) { return *reinterpret_cast<const half2*>(&w); }
/// NaN in a lane where the running check has met a value that is not finite: x * 0 is 0 for all others.
__device__ __forceinline__ half2 CheckFinite(const uint4& v, half2 check) {
  const half2 zero = __float2half2_rn(0.f);
  check = __hfma2(AsHalf2(v.x), zero, check);
  check = __hfma2(AsHalf2(v.y), zero, check);
  check = __hfma2(AsHalf2(v.z), zero, check);
  return __hfma2(AsHalf2(v.w), zero, check);
}
__device__ __forceinline__ bool IsClean(half2 check) {
  const float2 x = __half22float2(check);
  return x.x == 0 && x.y == 0;
}
__device__ __forceinline__ uint32_t FiniteOrZero(uint32_t w) {
  if ((w & 0x7c00u) == 0x7c00u) w &= 0xffff0000u;
  if ((w & 0x7c000000u) == 0x7c000000u) w &= 0x0000ffffu;
  return w;
}
__device__ __forceinline__ void MakeFinite(uint4& v) {
  v = make_uint4(FiniteOrZero(v.x), FiniteOrZero(v.y), FiniteOrZero(v.z), FiniteOrZero(v.w));
}

/// 8 values times `factor`.
__device__ __forceinline__ void Unpack(const uint4& v, float factor, float* to) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float2 x = __half22float2(AsHalf2(words[i]));
    to[2 * i] = x.x * factor;
    to[2 * i + 1] = x.y * factor;
  }
}
/// sum + the squares of two f16 values.
__device__ __forceinline__ float SumOfSquares(uint32_t pair, float sum) {
  const float2 x = __half22float2(AsHalf2(pair));
  return fmaf(x.y, x.y, fmaf(x.x, x.x, sum));
}

// ---- Hadamard stages on n values of a thread
template <int kStride, int kCount>
__device__ __forceinline__ void RegisterStage(float (&x)[kCount]) {
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    if (i & kStride) continue;
    const float a = x[i], b = x[i + kStride];
    x[i] = a + b;
    x[i + kStride] = a - b;
  }
}
template <int kMask, int kCount>
__device__ __forceinline__ void LaneStage(float (&x)[kCount]) {
  const float sign = (threadIdx.x & kMask) ? -1.f : 1.f;
#pragma unroll
  for (int i = 0; i < kCount; ++i) x[i] = fmaf(x[i], sign, __shfl_xor_sync(~0u, x[i], kMask));
}

/// A token's 16 channels in two chunks, D/16 threads a token: chunks Chunk(j) and Chunk(j) + 2, so that channel bit 4 lies in registers, as
/// the tensor-core order of affine keys wants it.
template <int kDim>
struct RowTile {
  __device__ static int Chunk(int j) { return 4 * (j >> 1) + (j & 1); }

  /// x <- H x without the factor 1 / sqrt(D).
  __device__ static void Rotate(float (&x)[16]) {
    RegisterStage<1>(x);
    RegisterStage<2>(x);
    RegisterStage<4>(x);
    LaneStage<1>(x);                            // channel bit 3
    RegisterStage<8>(x);                        // 4
    LaneStage<2>(x);                            // 5
    if constexpr (kDim == 128) LaneStage<4>(x);  // 6
  }
};

/// A token's 32 channels in four consecutive chunks, D/32 threads a token.
template <int kDim>
__device__ __forceinline__ void RotateRun32(float (&x)[32]) {
  RegisterStage<1>(x);
  RegisterStage<2>(x);
  RegisterStage<4>(x);
  RegisterStage<8>(x);
  RegisterStage<16>(x);
  LaneStage<1>(x);
  if constexpr (kDim == 128) LaneStage<2>(x);
}

/// 1 / sqrt(D), rounded to nearest.
template <int kDim>
__device__ __forceinline__ float RotationFactor(bool rotate) {
  static_assert(kDim == 64 || kDim == 128 || kDim == 256);
  return rotate ? (kDim == 64 ? 0.125f : kDim == 128 ? 0.08838834764831845f : 0.0625f) : 1.f;
}

/// Rows of the exact tokens as they are, in token order, to the sink rows of a sequence.
template <int kDim>
__device__ __forceinline__ void CopyExactRows(const RowSource& rows, const SealJob& job, uint8_t* to) {
  int index = 0;
  for (int t = 0; t < kTokens && index < kMaxSinkTokens; ++t) {
    if (!IsExact(job, t)) continue;
    for (int chunk = threadIdx.x; chunk < kDim / 8; chunk += blockDim.x) {
      *reinterpret_cast<uint4*>(to + RowByte<kDim>(index, 8 * chunk)) = rows.Chunk(t, chunk);
    }
    ++index;
  }
}

// Codes, rne(clamp(x, 0, L)), L the largest: the argument comes as x / L, which the fused multiply-add that makes it clamps for nothing.
inline constexpr float kCodeMagic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, ties to even
/// The code in the low bits, the bits of kCodeMagic above them: sums of shifted ones are put right by CodeBias.
template <int kBits>
__device__ __forceinline__ uint32_t BiasedCode(float part) {
  return __float_as_uint(fmaf(part, (1 << kBits) - 1, kCodeMagic));
}
/// The same as a number.
template <int kBits>
__device__ __forceinline__ float CodeValue(float part) {
  return __uint_as_float(BiasedCode<kBits>(part)) - kCodeMagic;
}
inline constexpr uint32_t kCodeMagicBits = 0x4b400000u;
/// clamp(a * b + c, 0, 1); 0 for NaN
__device__ __forceinline__ float SaturatedMultiplyAdd(float a, float b, float c) {
  float x;
  asm("fma.rn.sat.f32 %0, %1, %2, %3;" : "=f"(x) : "f"(a), "f"(b), "f"(c));
  return x;
}
/// 1 / x for a normal x, within an ulp.
__device__ __forceinline__ float Reciprocal(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return fmaf(y, fmaf(-x, y, 1.f), y);
}

__device__ __forceinline__ uint16_t SaturatedF16(float x) {
  return __half_as_ushort(__float2half_rn(fminf(fmaxf(x, -65504.f), 65504.f)));
}
__device__ __forceinline__ uint32_t PackSaturated(float x, float y) {
  const half2 pair = __floats2half2_rn(fminf(fmaxf(x, -65504.f), 65504.f), fminf(fmaxf(y, -65504.f), 65504.f));
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint4 PackChunk(const float* x) {
  return make_uint4(PackSaturated(x[0], x[1]), PackSaturated(x[2], x[3]), PackSaturated(x[4], x[5]), PackSaturated(x[6], x[7]));
}
__device__ __forceinline__ float FromF16(uint16_t x) { return __half2float(__ushort_as_half(x)); }

}  // namespace kvrazor::cuda
