// Plain pages to f16 rows (plain_read.cuh). A warp takes 16 tokens of one head and side at a time: decoded to f32 in shared memory, rotated
// back row by row (row_rotation.cuh), stored. D = 128: 4 warps, 32 KB of shared memory.
#pragma once

#include "src/backends/cuda/dequantize_rows.cuh"
#include "src/backends/cuda/plain_read.cuh"
#include "src/backends/cuda/row_rotation.cuh"

namespace kvrazor::cuda {

template <int kDim_>
struct PlainDequantize {
  static constexpr int kDim = kDim_;
  static constexpr int kWarps = kDim == 256 ? 2 : 4;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kCount = kDim / 32;  // channels of a lane

  struct Shared {
    float tile[kWarps][kRowUnit * kDim];
    float level[16];
  };
  static_assert(sizeof(Shared) <= 48 * 1024, "what every kernel may use without asking");

  /// Groups of four channels, those of neighbouring tokens in other banks.
  __device__ static int Position(int token, int channel) { return token * kDim + ((channel / 4 ^ token & 7) * 4) + channel % 4; }

  __device__ static void Run(const DequantizeParams& p, const PlainPage& plain, Shared& s) {
    const DequantizeJob job = p.jobs[blockIdx.y];
    if (job.source < 0) return;
    const int head = blockIdx.x, side = blockIdx.z, warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    const PlainSide& format = side == 0 ? plain.k : plain.v;
    const uint8_t* page = p.packed_pages + job.source * plain.page_bytes;
    const RowTarget out = MakeRowTarget<kDim>(p, job, head, side);
    const int exact = ExactTokens(p, job);
    if (threadIdx.x < 16) s.level[threadIdx.x] = format.level[threadIdx.x];
    __syncthreads();
    float* tile = s.tile[warp];
#pragma unroll 1
    for (int first = kRowUnit * warp; first < kTokens; first += kRowUnit * kWarps) {
      __syncwarp();
      if (side == 0) {
        ReadPlainKeys<kDim>(format, page, head, first, s.level, [&](int token, int channel, const float (&x)[16]) {
#pragma unroll
          for (int i = 0; i < 16; i += 4) *reinterpret_cast<float4*>(tile + Position(token, channel + i)) = make_float4(x[i], x[i + 1], x[i + 2], x[i + 3]);
        });
      } else {
        ReadPlainValues<kDim>(format, page + plain.k.at.page_bytes, head, first, s.level, [&](int token, int channel, float x, float y) {
          *reinterpret_cast<float2*>(tile + Position(token, channel)) = make_float2(x, y);
        });
      }
      __syncwarp();
#pragma unroll 1
      for (int token = 0; token < kRowUnit; ++token) {
        float x[kCount];
        const int channel = kCount * lane;
#pragma unroll
        for (int i = 0; i < kCount; ++i) x[i] = tile[Position(token, channel + i)];
        if (format.rotate) {
          RotateOverWarp(x);
#pragma unroll
          for (int i = 0; i < kCount; ++i) x[i] *= RotationFactor<kDim>(true);
        }
        if (first + token < exact) continue;
        uint32_t* to = reinterpret_cast<uint32_t*>(out.Chunk(first + token, channel / 8)) + channel % 8 / 2;
#pragma unroll
        for (int i = 0; i < kCount; i += 2) to[i / 2] = PackSaturated(x[i], x[i + 1]);
      }
    }
    CopySinkRows<kDim>(p, job, head, side, out);
  }
};

template <int kDim>
__global__ __launch_bounds__(PlainDequantize<kDim>::kThreads) void DequantizePlain(const __grid_constant__ DequantizeParams p,
                                                                                   const __grid_constant__ PlainPage page) {
  extern __shared__ uint4 shared[];
  PlainDequantize<kDim>::Run(p, page, *reinterpret_cast<typename PlainDequantize<kDim>::Shared*>(shared));
}

}  // namespace kvrazor::cuda
