// Rows of 16 tokens on tensor cores: load, replace what is not finite, rotate. A warp's lane 4 g + q has operand A of each block of 16 channels:
// four words of rows g, g + 8, g, g + 8. Loaded directly, these are the four channels from 4 q on; through shared memory (Fetch, Take), 2 q, 2 q + 1,
// 2 q + 8, 2 q + 9. Afterwards the lane holds channels 16 b + 8 h + 2 q + n of both rows: value 4 b + 2 h + n.
//
//   channel bits 0 - 3   H_16 of +-1 as operand B, products of f16 with it are exact
//                4, 5    the blocks of a group of four, added up with their signs by the same products
//                6       an addition in registers
//
// Not rotated: the identity instead of H_16. Sums are f32.
#pragma once

#include "src/backends/cuda/ptx.cuh"
#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

template <int kDim>
struct RowTile16 {
  static constexpr int kBlocks = kDim / 16;  // of 16 channels
  static constexpr int kValues = kDim / 4;   // of a lane and row
  using Raw = uint4[kBlocks];  // operand A

  __device__ static int Lane() { return static_cast<int>(threadIdx.x & 31); }
  /// Channel of value k of the lanes q.
  __device__ static constexpr int ChannelOf(int k, int q) { return 16 * (k / 4) + 8 * (k / 2 % 2) + 2 * q + k % 2; }

  __device__ static void Load(const RowSource& rows, const int (&token)[2], Raw& raw) {
    const int q = Lane() & 3;
    uint2 half[2][kBlocks];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // The swizzle changes three bits of the chunk: four addresses, every other one 128 bytes behind one of them.
      const uint8_t* at[4];
      const uint8_t* row = rows.base + token[r] * rows.token_bytes + 8 * (q % 2);
      const int swizzle = token[r] & rows.swizzle;
#pragma unroll
      for (int i = 0; i < 4; ++i) at[i] = row + ((2 * i + q / 2) ^ swizzle) * 16;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) half[r][b] = LoadOnce(at[b % 4] + 128 * (b / 4));
    }
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) raw[b] = make_uint4(half[0][b].x, half[1][b].x, half[0][b].y, half[1][b].y);
    KeepFinite(raw);
  }

  /// Load in two halves: a warp's rows on their way to its own shared memory, and from there. token_of(r) of rows r = 0 .. 15 permutes the
  /// bits of r, plus a constant.
  static constexpr int kFetchedBytes = 16 * 2 * kDim;
  template <class TokenOf>
  __device__ static void Fetch(const RowSource& rows, uint32_t to, TokenOf token_of) {
    constexpr int kChunks = kDim / 8, kRows = 32 / kChunks;  // rows that a warp copies at once
    const int chunk = Lane() % kChunks, row = Lane() / kChunks, first = token_of(row);
    const uint8_t* from = rows.base + first * rows.token_bytes;
#pragma unroll
    for (int r = 0; r < 16; r += kRows) {
      // token_of permutes the bits of a row, and those of `row` and r are different ones.
      const int step = token_of(r) - token_of(0);
      const uint8_t* at = from + step * rows.token_bytes + ((chunk ^ ((first + step) & rows.swizzle)) * 16);
      asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16;" ::"r"(to + (row + r) * 2 * kDim + (chunk ^ ((row + r) & 7)) * 16), "l"(at) : "memory");
    }
  }
  __device__ static void Take(uint32_t from, Raw& raw) {
    asm volatile("cp.async.wait_all;" ::: "memory");
    __syncwarp();
    const int r = Lane() & 15, high = Lane() >> 4;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      uint32_t a[4];
      LoadMatrices(a, from + r * 2 * kDim + ((2 * b + high) ^ (r & 7)) * 16);
      raw[b] = make_uint4(a[0], a[1], a[2], a[3]);
    }
    KeepFinite(raw);
    __syncwarp();
  }

  /// What is not finite counts as 0.
  __device__ static void KeepFinite(Raw& raw) {
    half2 check = __float2half2_rn(0.f);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) check = CheckFinite(raw[b], check);
    if (!IsClean(check)) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) MakeFinite(raw[b]);
    }
  }

  /// x <- H x without the factor 1 / sqrt(D), or x. kFetched: raw comes from Take.
  template <bool kFetched>
  __device__ static void Rotate(bool rotate, const Raw& raw, float (&x)[2][kValues]) {
    const int g = Lane() >> 2, q = Lane() & 3;
    uint2 b[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int column = 8 * h + g;
      const int k = kFetched ? 2 * q : 4 * q, next = kFetched ? 8 : 2;
      b[h] = make_uint2(Entry(rotate, k, column) | Entry(rotate, k + 1, column) << 16,
                        Entry(rotate, k + next, column) | Entry(rotate, k + next + 1, column) << 16);
    }
    if (!rotate) {
#pragma unroll
      for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
        for (int h = 0; h < 2; ++h) {
          float c[4];
          First(raw, block, b[h], c);
          Put(c, block, h, x);
        }
      }
      return;
    }
    constexpr uint32_t kSigns = 0x80008000u;
    const uint2 minus[2] = {make_uint2(b[0].x ^ kSigns, b[0].y ^ kSigns), make_uint2(b[1].x ^ kSigns, b[1].y ^ kSigns)};
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float c[4];
        First(raw, block / 4 * 4, b[h], c);
#pragma unroll
        for (int i = 1; i < 4; ++i) {
          const int common = i & block & 3;
          Multiply(raw, block / 4 * 4 + i, common == 1 || common == 2 ? minus[h] : b[h], c);
        }
        Put(c, block, h, x);
      }
    }
    if constexpr (kDim == 128) {
      RegisterStage<16>(x[0]);
      RegisterStage<16>(x[1]);
    }
  }

  /// Sums of squares of the lane's two rows, of all their channels.
  __device__ static void Squares(const Raw& raw, float (&sum)[2]) {
    sum[0] = sum[1] = 0;
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) {
      sum[0] = SumOfSquares(raw[b].z, SumOfSquares(raw[b].x, sum[0]));
      sum[1] = SumOfSquares(raw[b].w, SumOfSquares(raw[b].y, sum[1]));
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(~0u, sum[r], 1);
      sum[r] += __shfl_xor_sync(~0u, sum[r], 2);
    }
  }

 private:
  __device__ static uint2 LoadOnce(const uint8_t* at) {
    uint2 v;
    asm("ld.global.nc.L2::128B.v2.u32 {%0, %1}, [%2];" : "=r"(v.x), "=r"(v.y) : "l"(at));
    return v;
  }
  /// Entry (channel, column) of H_16 or of the identity, as f16.
  __device__ static uint32_t Entry(bool rotate, int channel, int column) {
    constexpr uint32_t kOne = 0x3c00, kSign = 0x8000;
    if (!rotate) return channel == column ? kOne : 0;
    return kOne | ((__popc(channel & column) & 1) ? kSign : 0);
  }
  /// c = a b; Multiply: c += a b. An operand of 0 needs no register.
  __device__ static void First(const Raw& raw, int block, const uint2& b, float (&c)[4]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%10,%10,%10,%10};"
        : "=f"(c[0]), "=f"(c[1]), "=f"(c[2]), "=f"(c[3])
        : "r"(raw[block].x), "r"(raw[block].y), "r"(raw[block].z), "r"(raw[block].w), "r"(b.x), "r"(b.y), "f"(0.f));
  }
  __device__ static void Multiply(const Raw& raw, int block, const uint2& b, float (&c)[4]) {
    MmaF16(c[0], c[1], c[2], c[3], raw[block].x, raw[block].y, raw[block].z, raw[block].w, b.x, b.y);
  }
  __device__ static void Put(const float (&c)[4], int block, int h, float (&x)[2][kValues]) {
    x[0][4 * block + 2 * h] = c[0];
    x[0][4 * block + 2 * h + 1] = c[1];
    x[1][4 * block + 2 * h] = c[2];
    x[1][4 * block + 2 * h + 1] = c[3];
  }
};

}  // namespace kvrazor::cuda
