// Steps 3 and 4 of sealing razor keys (seal_razor_key.cuh): the image r (I + W) and the codes by feedback, both on tensor cores but for what
// happens within a block of 16 channels.
#pragma once

#include "src/backends/cuda/seal_razor_key_tile.cuh"

namespace kvrazor::cuda {

template <class KeyTile>
struct RazorKeyCodes : KeyTile {
  using typename KeyTile::Metric;
  using typename KeyTile::Shared;
  using KeyTile::kBlocks, KeyTile::kDim, KeyTile::kMiddle, KeyTile::kMost, KeyTile::kStrip, KeyTile::kWhole;
  using KeyTile::Chunk, KeyTile::FloatChunk, KeyTile::Read, KeyTile::Swizzle, KeyTile::Warp;

  // ---- 3
  /// r / s: two f16 each, high its rounding and low what is left; or as it is.
  template <bool kMetric>
  __device__ static void Divide(int token, float scale, Shared& s) {
    const float inverse = scale > 0 ? __fdiv_rn(1.f, scale) : 0.f;
    const int quarters = kWhole ? 4 : 1, from = kWhole ? 0 : Warp();
#pragma unroll 1
    for (int quarter = from; quarter < from + quarters; ++quarter) {
      KeyTile::template OverChunks<4>(token, quarter, s, [&](float4* at, int) {
        float4 r = *at;
        r = make_float4(r.x * inverse, r.y * inverse, r.z * inverse, r.w * inverse);
        if constexpr (kMetric) {
          const uint32_t high01 = PackF16(r.x, r.y), high23 = PackF16(r.z, r.w);
          *reinterpret_cast<uint4*>(at) = make_uint4(high01, high23, PackF16(r.x - LowF16(high01), r.y - HighF16(high01)),
                                                     PackF16(r.z - LowF16(high23), r.w - HighF16(high23)));
        } else {
          *at = r;
        }
      });
    }
  }

  /// I + W of the channels of block kt (k) and `block` (rows) as operand A, its high or low part.
  __device__ static uint4 Weights(const uint8_t* metric, int kt, int block, int low) {
    return Read(reinterpret_cast<const uint4*>(metric + Metric::kFragments) + ((kt * kBlocks + block) * 2 + low) * 32 + (threadIdx.x & 31));
  }
  __device__ static void Multiply(const uint4& a, uint32_t b0, uint32_t b1, float (&c)[4]) { MmaF16(c[0], c[1], c[2], c[3], a.x, a.y, a.z, a.w, b0, b1); }

  /// A lane's rows of a strip as operand B: tokens 8 n + g, whose swizzle is the same. Chunk 4 kt + q holds the lane's four of 16 channels.
  struct Rows {
    uint8_t* base;
    int odd;
    __device__ Rows(Shared& s, int first) {
      const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3, swizzle = Swizzle(g);
      base = reinterpret_cast<uint8_t*>(s.tile[first + g]) + ((q ^ (swizzle & 3)) << 4);
      odd = swizzle >> 2;
    }
    __device__ uint8_t* At(int kt, int n) const { return base + ((kt ^ odd) << 6) + n * (8 * kDim * 4); }
  };
  /// Channels 16 block + g, g + 8 of tokens 8 n + 2 q, 2 q + 1: [n][channel g: both tokens, channel g + 8: both tokens].
  using Result = float[4][4];

  /// acc = r / s (I + W).
  __device__ static void ImageOf(const uint8_t* metric, const Rows& rows, int block, Result& acc) {
#pragma unroll 2
    for (int kt = 0; kt <= block; ++kt) {
      const uint4 high = Weights(metric, kt, block, 0), low = Weights(metric, kt, block, 1);
      uint4 r[4];
#pragma unroll
      for (int n = 0; n < 4; ++n) r[n] = *reinterpret_cast<const uint4*>(rows.At(kt, n));
      // Products that wait for each other lie apart.
#pragma unroll
      for (int n = 0; n < 4; ++n) Multiply(high, r[n].x, r[n].y, acc[n]);
#pragma unroll
      for (int n = 0; n < 4; ++n) Multiply(high, r[n].z, r[n].w, acc[n]);
#pragma unroll
      for (int n = 0; n < 4; ++n) Multiply(low, r[n].x, r[n].y, acc[n]);
    }
  }
  __device__ static void PutImage(int first, int block, const Result& acc, Shared& s) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int token = first + 8 * n + 2 * q + e % 2;
        reinterpret_cast<float*>(Chunk(s, token, 4 * block + g / 4 + 2 * (e / 2)))[g % 4] = acc[n][e];
      }
    }
  }
  __device__ static void Image(const uint8_t* metric, Shared& s) {
    if constexpr (kWhole) {
      const int first = threadIdx.x & ~31;
      const Rows rows(s, first);
#pragma unroll 1
      for (int block = kBlocks - 1; block >= 0; --block) {  // in place: block needs those up to it
        Result acc = {};
        ImageOf(metric, rows, block, acc);
        __syncwarp();
        PutImage(first, block, acc, s);
        __syncwarp();
      }
    } else {
      // Warp w takes blocks w and 7 - w (of four blocks: w), as many products as the others.
      constexpr int kShare = kBlocks / 4;
      static_assert(kShare == 1 || kShare == 2);
      const Rows rows(s, 0);
      Result acc[kShare] = {};
#pragma unroll
      for (int i = 0; i < kShare; ++i) ImageOf(metric, rows, i == 0 ? Warp() : kBlocks - 1 - Warp(), acc[i]);
      __syncthreads();
#pragma unroll
      for (int i = 0; i < kShare; ++i) PutImage(0, i == 0 ? Warp() : kBlocks - 1 - Warp(), acc[i], s);
      __syncthreads();
    }
  }

  // ---- 4. Returns the gain. Leaves in each chunk: levels as two f16 pairs, the codes of its four channels in the bytes of a word.
  template <bool kMetric>
  __device__ static float Encode(const uint8_t* metric, float scale, Shared& s) {
    float sums[2] = {};  // numerator, denominator of the gain
    const int token = threadIdx.x, strip = Warp();
    if constexpr (kWhole) {
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (kMetric && block > 0) {
          Result acc = {};
          const Rows rows(s, threadIdx.x & ~31);
#pragma unroll 2
          for (int kt = 0; kt < block; ++kt) AddFeedback(metric, rows, kt, block, acc);
          PutFeedback(strip, acc, s);
          __syncwarp();
        }
        CodeBlock<kMetric>(metric, scale > 0, block, token, strip, sums, s);
        __syncwarp();
      }
    } else if constexpr (!kMetric) {
      if (threadIdx.x < kStrip) {
#pragma unroll 1
        for (int block = 0; block < kBlocks; ++block) CodeBlock<false>(nullptr, scale > 0, block, token, 0, sums, s);
      }
    } else {
      // Warp 0 codes; warp w > 0 keeps the feedback to blocks w, w + 3, ..: first of all what the next block waits for.
      constexpr int kOwn = (kBlocks - 1 + 2) / 3;
      Result acc[kOwn] = {};
      const Rows rows(s, 0);
#pragma unroll 1
      for (int block = 0; block < kBlocks; ++block) {
        if (Warp() == 0) {
          CodeBlock<true>(metric, scale > 0, block, token, 0, sums, s);
        } else if (block > 0) {
#pragma unroll
          for (int i = 0; i < kOwn; ++i) {
            if (const int to = Warp() + 3 * i; to > block && to < kBlocks) AddFeedback(metric, rows, block - 1, to, acc[i]);
          }
        }
        __syncthreads();
        if (block + 1 == kBlocks) break;
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
          if (Warp() > 0 && Warp() + 3 * i == block + 1) {
            AddFeedback(metric, rows, block, block + 1, acc[i]);
            PutFeedback(0, acc[i], s);
          }
        }
        __syncthreads();
      }
    }
    constexpr float kLeastGain = 0.7f, kMostGain = 1.6f;
    return sums[1] > 0 ? fminf(fmaxf(__fdiv_rn(sums[0], sums[1]), kLeastGain), kMostGain) : 1.f;
  }

  /// acc += levels of block kt times W to `block`.
  __device__ static void AddFeedback(const uint8_t* metric, const Rows& rows, int kt, int block, Result& acc) {
    const uint4 high = Weights(metric, kt, block, 0), low = Weights(metric, kt, block, 1);
    uint2 levels[4];
#pragma unroll
    for (int n = 0; n < 4; ++n) levels[n] = *reinterpret_cast<const uint2*>(rows.At(kt, n));
#pragma unroll
    for (int n = 0; n < 4; ++n) Multiply(high, levels[n].x, levels[n].y, acc[n]);
#pragma unroll
    for (int n = 0; n < 4; ++n) Multiply(low, levels[n].x, levels[n].y, acc[n]);
  }
  __device__ static int Fed(int channel, int token) { return token ^ ((channel & 3) << 3); }
  __device__ static void PutFeedback(int strip, const Result& acc, Shared& s) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
    for (int n = 0; n < 4; ++n) {
#pragma unroll
      for (int half = 0; half < 2; ++half)
        *reinterpret_cast<float2*>(&s.scratch[strip][g + 8 * half][Fed(g, 8 * n + 2 * q)]) = make_float2(acc[n][2 * half], acc[n][2 * half + 1]);
    }
  }

  template <bool kMetric>
  __device__ static void CodeBlock(const uint8_t* metric, bool counts, int block, int token, int strip, float (&sums)[2], Shared& s) {
    const int lane = threadIdx.x & 31;
    float v[16], b[16];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const float4 image = *FloatChunk(s, token, 4 * block + k);
      v[4 * k] = image.x;
      v[4 * k + 1] = image.y;
      v[4 * k + 2] = image.z;
      v[4 * k + 3] = image.w;
    }
#pragma unroll
    for (int c = 0; c < 16; ++c) b[c] = kMetric && block > 0 ? s.scratch[strip][c][Fed(c, lane)] : 0.f;
    const float* within = kMetric ? reinterpret_cast<const float*>(metric + Metric::kWithin) + block * 256 : nullptr;
    const float* pivots = kMetric ? reinterpret_cast<const float*>(metric + Metric::kPivots) + block * 16 : nullptr;
    constexpr uint32_t kNoCodes = 0u - kCodeMagicBits * 0x01010101u;  // what 4 biased codes, one a byte, add up to besides
    uint32_t codes[4] = {kNoCodes, kNoCodes, kNoCodes, kNoCodes}, levels[8];
    float even_level = 0;
#pragma unroll
    for (int c = 0; c < 16; ++c) {
      // (v - b + L/2) / L; what depends on the channel before is as short as it can be.
      const float biased = fmaf(SaturatedMultiplyAdd(b[c], -1.f / kMost, fmaf(v[c], 1.f / kMost, 0.5f)), kMost, kCodeMagic);
      const float level = (biased - kCodeMagic) - kMiddle;
      const float weighted = kMetric ? v[c] * Read(pivots + c) : v[c];
      sums[0] = fmaf(weighted, v[c], sums[0]);
      sums[1] = fmaf(weighted, level + b[c], sums[1]);
      codes[c / 4] += __float_as_uint(biased) << (8 * (c % 4));
      if (c % 2 == 0) {
        even_level = level;
      } else {
        levels[c / 2] = PackF16(even_level, level);
      }
      if (kMetric) {
#pragma unroll
        for (int k = (c + 1) / 4; k < 4; ++k) {
          const float4 w = Read(reinterpret_cast<const float4*>(within + c * 16 + 4 * k));  // 0 up to channel c
          const float weights[4] = {w.x, w.y, w.z, w.w};
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            if (4 * k + e > c) b[4 * k + e] = fmaf(weights[e], level, b[4 * k + e]);
          }
        }
      }
    }
#pragma unroll
    for (int k = 0; k < 4; ++k)
      *Chunk(s, token, 4 * block + k) = make_uint4(levels[2 * k], levels[2 * k + 1], counts ? codes[k] : 0, 0);
  }
};

}  // namespace kvrazor::cuda
