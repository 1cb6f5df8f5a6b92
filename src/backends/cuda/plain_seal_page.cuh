// What sealing one head and side of a plain page is made of, whatever the codec: rows on their way to registers or shared memory, and codes on
// their way to the page. 256 threads. A warp takes a token at a time, a lane D / 32 of its channels side by side; what runs down the tokens is
// taken from 32 of them in shared memory, by a thread a channel. Codes are collected as bytes [128][D].
#pragma once

#include "src/backends/cuda/plain_page.h"
#include "src/backends/cuda/row_rotation.cuh"
#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

inline constexpr int kSealStrip = 32;  // tokens in shared memory at once

/// clamp(rne((x - base) * inverse + shift), 0, most)
__device__ __forceinline__ uint8_t PlainCode(float x, float base, float inverse, float shift, float most) {
  return static_cast<uint8_t>(fminf(fmaxf(rintf(fmaf(x - base, inverse, shift)), 0.f), most));
}

template <int kDim_>
struct PlainSealPage {
  static constexpr int kDim = kDim_;
  static constexpr int kThreads = 256, kWarps = kThreads / 32;
  static constexpr int kCount = kDim / 32;  // channels of a lane
  static_assert(kThreads >= kDim, "a thread a channel");

  struct Shared {
    float strip[kSealStrip][kDim];
    uint8_t codes[kTokens][kDim];
    float base[4][kDim], inverse[4][kDim], shift[4][kDim];  // affine: of groups of tokens, first their ranges; razor: of channels
    float factor[kTokens];                                   // of tokens: 1 / token scale, 1 / norm; razor keys: s'
    float level[16], threshold[15];
    float reduce[kWarps];
  };
  static_assert(sizeof(Shared) <= 99 * 1024, "what the smallest of these cards has");

  struct Job {
    const SealParams& p;
    const PlainSide& side;
    const SealJob& job;
    RowSource rows;
    int head;
    bool is_key;
    uint8_t* page;  // of this side
    uint8_t* out;   // this head in it
  };

  __device__ static int Warp() { return static_cast<int>(threadIdx.x / 32); }
  __device__ static int Lane() { return static_cast<int>(threadIdx.x & 31); }

  /// Bytes that belong to nothing are 0, as the CPU writes them: of this head, and before the heads where it is the first. Head scalars are
  /// each head's own.
  __device__ static void Clear(const Job& j) {
    for (int64_t at = 4 * threadIdx.x; at < j.side.at.head_bytes; at += 4 * kThreads) *reinterpret_cast<uint32_t*>(j.out + at) = 0;
    if (j.head == 0) {
      const int64_t scalars = j.side.at.head_scalars_at, end = scalars + 8 * j.p.num_kv_heads;
      for (int64_t at = 4 * threadIdx.x; at < j.side.at.heads_at; at += 4 * kThreads) {
        if (scalars < 0 || at < scalars || at >= end) *reinterpret_cast<uint32_t*>(j.page + at) = 0;
      }
    }
    __syncthreads();
  }

  /// y of a token: the lane's channels, rotated; 0 if the token is exact.
  __device__ static void LoadToken(const Job& j, int token, float (&x)[kCount]) {
    LoadLane(j.rows, token, x);
    if (j.side.rotate) {
      RotateOverWarp(x);
#pragma unroll
      for (int i = 0; i < kCount; ++i) x[i] *= RotationFactor<kDim>(true);
    }
    if (!IsExact(j.job, token)) return;
#pragma unroll
    for (int i = 0; i < kCount; ++i) x[i] = 0;
  }

  /// Tokens [first, first + 32) to shared memory, times their factors (SharedPage::factor) if they are scaled.
  __device__ static void LoadStrip(const Job& j, int first, bool scaled, Shared& s) {
    __syncthreads();
    for (int t = Warp(); t < kSealStrip; t += kWarps) {
      float x[kCount];
      LoadToken(j, first + t, x);
      const float factor = scaled ? s.factor[first + t] : 1.f;
#pragma unroll
      for (int i = 0; i < kCount; ++i) s.strip[t][kCount * Lane() + i] = x[i] * factor;
    }
    __syncthreads();
  }

  /// Codes as the page has them: 32 neighbours of a line in a dword of high bits, or in words of 16 or 8
  __device__ static void WriteCodes(const Job& j, const Shared& s) {
    const int num_lines = j.is_key ? kTokens : kDim, num_k = j.is_key ? kDim : kTokens, bits = j.side.bits;
    const int row_bits = bits == 3 ? 2 : bits, per_row = 32 / row_bits;
    for (int i = threadIdx.x; i < num_lines * (num_k / 32); i += kThreads) {
      const int line = i % num_lines, from = i / num_lines * 32;
      uint32_t words[4] = {}, high = 0;
#pragma unroll
      for (int k = 0; k < 32; ++k) {
        const uint32_t code = j.is_key ? s.codes[line][from + k] : s.codes[from + k][line];
        words[k / per_row] |= (code & ((1u << row_bits) - 1)) << (8 * (k % 4) + k % per_row / 4 * row_bits);
        high |= (code >> 2 & 1u) << (8 * (k % 4) + k / 4);
      }
      uint8_t* lane = j.out + line % 16 * 4;
      const int row = (line / 16 * num_k + from) / per_row;
      for (int w = 0; w < 32 / per_row; ++w) *reinterpret_cast<uint32_t*>(lane + j.side.at.codes_at + (row + w) * 64) = words[w];
      if (bits == 3) *reinterpret_cast<uint32_t*>(lane + j.side.at.high_codes_at + (line / 16 * num_k + from) / 32 * 64) = high;
    }
  }
};

}  // namespace kvrazor::cuda
