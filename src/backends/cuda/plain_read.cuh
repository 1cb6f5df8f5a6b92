// Reads plain pages (plain_page.h): 16 tokens of one head by one warp, as f32 in the basis of the page. Codes stand in dwords of one line, a
// token of keys or a channel of values, and 16 neighbours along the other dimension, a run:
//
//   keys    lane = token first + lane % 16, runs lane / 16 + 2 i: 16 channels of a token at once
//   values  lane = channels 2 lane, 2 lane + 1 of every 64: the run of all 16 tokens
//
// The codec is a matter of the page, not of the kernel: a switch a warp takes once per 16 tokens.
#pragma once

#include "src/backends/cuda/plain_page.h"
#include "src/backends/cuda/ptx.cuh"
#include "src/backends/cuda/seal_rows.cuh"
#include "src/backends/cuda/small_floats.cuh"

namespace kvrazor::cuda {

__device__ __forceinline__ uint16_t LoadU16(const uint8_t* from, int index) { return __ldg(reinterpret_cast<const uint16_t*>(from) + index); }
__device__ __forceinline__ float LoadF16(const uint8_t* from, int index) { return FromF16(LoadU16(from, index)); }

/// 16 f16 values, 32-byte aligned.
struct F16Run {
  uint4 words[2];

  __device__ explicit F16Run(const uint8_t* from) {
    words[0] = __ldg(reinterpret_cast<const uint4*>(from));
    words[1] = __ldg(reinterpret_cast<const uint4*>(from) + 1);
  }
  __device__ float At(int i) const {
    const uint32_t pair = WordOf(words[i / 8], i % 8 / 2);
    return i % 2 ? HighF16(pair) : LowF16(pair);
  }
};

/// The codes of one line at 16 neighbours of the other dimension.
template <int kBits>
struct CodeRun {
  static constexpr int kWords = kBits == 4 ? 2 : 1;
  uint32_t low[kWords], high = 0;

  /// Of num_k neighbours the 16 from 16 run on.
  __device__ CodeRun(const uint8_t* head, const CpuSide& s, int num_k, int line, int run) {
    const uint8_t* lane = head + line % 16 * 4;
    const int first_row = line / 16 * (num_k / 16 * kWords) + run * kWords;
#pragma unroll
    for (int i = 0; i < kWords; ++i) low[i] = __ldg(reinterpret_cast<const uint32_t*>(lane + s.codes_at + (first_row + i) * 64));
    if constexpr (kBits == 3) {
      const int row = line / 16 * (num_k / 32) + run / 2;
      high = __ldg(reinterpret_cast<const uint32_t*>(lane + s.high_codes_at + row * 64)) >> (run % 2 * 4);
    }
  }
  __device__ uint32_t At(int i) const {
    if constexpr (kBits == 4) return low[i / 8] >> (8 * (i % 4) + i % 8 / 4 * 4) & 15u;
    const uint32_t code = low[0] >> (8 * (i % 4) + i / 4 * 2) & 3u;
    if constexpr (kBits == 3) return code | (high >> (8 * (i % 4) + i / 4) & 1u) << 2;
    return code;
  }
};

/// fn.operator()<kBits>() for the width of a side's codes.
template <class Fn>
__device__ __forceinline__ void DispatchBits(int bits, Fn fn) {
  if (bits == 2) {
    fn.template operator()<2>();
  } else if (bits == 3) {
    fn.template operator()<3>();
  } else {
    fn.template operator()<4>();
  }
}

/// What a key's value is made of besides its code, for one token; all linear: x = token * (scale * code + offset).
struct PlainKeyToken {
  float norm = 1;        // affine: the token scale; codebook: norm
  float scale = 0;       // razor: s'
  float mean_scale = 0;  // razor: times the token's factor of the mean

  __device__ PlainKeyToken(const PlainSide& s, const uint8_t* page, const uint8_t* from, int head, int token) {
    if (s.at.token_scale_at >= 0) norm = LoadF16(page + s.at.token_scale_at, token);
    if (s.codec == Codec::kCodebook) norm = LoadF16(from + s.at.norm_at, token);
    if (s.codec == Codec::kRazorKey) {
      const float2 scalars = __ldg(reinterpret_cast<const float2*>(page + s.at.head_scalars_at) + head);  // of the mean; base
      scale = DeviceDecodeE3M5(__ldg(from + s.at.scale_at + token), scalars.y);
      mean_scale = scalars.x * (s.rank_one_mean ? LoadF16(from + s.at.mean_factor_at, token) : 1.f);
    }
  }
};

/// put(token of the unit 0..15, channel, x[16]) for channels from `channel` on, of tokens first .. first + 15. first is a multiple of 16.
///   page    of the keys;  level [16] in shared memory (PlainSide::level)
template <int kDim, class Put>
__device__ __forceinline__ void ReadPlainKeys(const PlainSide& s, const uint8_t* page, int head, int first, const float* level, Put put) {
  const int lane = threadIdx.x & 31, unit_token = lane % 16, token = first + unit_token;
  const uint8_t* from = page + s.at.heads_at + head * s.at.head_bytes;
  const PlainKeyToken key(s, page, from, head, token);
  DispatchBits(s.bits, [&]<int kBits>() {
#pragma unroll 1
    for (int run = lane / 16; run < kDim / 16; run += 2) {
      const int channel = 16 * run;
      const CodeRun<kBits> codes(from, s.at, kDim, token, run);
      float x[16];
      if (s.codec == Codec::kAffine && s.per_channel) {
        const int at = 2 * (token / s.at.group_size * kDim + channel);
        const F16Run scale(from + s.at.scale_at + at), offset(from + s.at.offset_at + at);
#pragma unroll
        for (int i = 0; i < 16; ++i) x[i] = fmaf(scale.At(i), static_cast<float>(codes.At(i)), offset.At(i)) * key.norm;
      } else if (s.codec == Codec::kAffine) {
        const int at = channel / s.at.group_size * kTokens + token;
        const float scale = LoadF16(from + s.at.scale_at, at), offset = LoadF16(from + s.at.offset_at, at);
#pragma unroll
        for (int i = 0; i < 16; ++i) x[i] = fmaf(scale, static_cast<float>(codes.At(i)), offset) * key.norm;
      } else if (s.codec == Codec::kCodebook) {
#pragma unroll
        for (int i = 0; i < 16; ++i) x[i] = level[codes.At(i)] * key.norm;
      } else {
        constexpr float kMiddle = 0.5f * ((1 << kBits) - 1);
        const uint4* means = reinterpret_cast<const uint4*>(from + s.at.mean_at + 2 * channel);  // int16
        const uint4 words[2] = {__ldg(means), __ldg(means + 1)};
#pragma unroll
        for (int i = 0; i < 16; ++i) {
          const uint32_t pair = WordOf(words[i / 8], i % 8 / 2);
          const auto mean = static_cast<float>(static_cast<int16_t>(i % 2 ? pair >> 16 : pair & 0xffff));
          x[i] = fmaf(key.scale, static_cast<float>(codes.At(i)) - kMiddle, mean * key.mean_scale);
        }
      }
      put(unit_token, channel, x);
    }
  });
}

/// put(token of the unit 0..15, channel, x, y) for the channels `channel` and the next, of tokens first .. first + 15.
///   page    of the values
template <int kDim, class Put>
__device__ __forceinline__ void ReadPlainValues(const PlainSide& s, const uint8_t* page, int head, int first, const float* level, Put put) {
  const int lane = threadIdx.x & 31;
  const uint8_t* from = page + s.at.heads_at + head * s.at.head_bytes;
  DispatchBits(s.bits, [&]<int kBits>() {
#pragma unroll 1
    for (int channel = 2 * lane; channel < kDim; channel += 64) {
      const CodeRun<kBits> a(from, s.at, kTokens, channel, first / 16), b(from, s.at, kTokens, channel + 1, first / 16);
      if (s.codec == Codec::kAffine) {
        const int at = 2 * (channel / s.at.group_size * kTokens + first);
        const F16Run scale(from + s.at.scale_at + at), offset(from + s.at.offset_at + at);
#pragma unroll
        for (int t = 0; t < 16; ++t) {
          put(t, channel, fmaf(scale.At(t), static_cast<float>(a.At(t)), offset.At(t)), fmaf(scale.At(t), static_cast<float>(b.At(t)), offset.At(t)));
        }
      } else if (s.codec == Codec::kCodebook) {
        const F16Run norm(from + s.at.norm_at + 2 * first);
#pragma unroll
        for (int t = 0; t < 16; ++t) put(t, channel, level[a.At(t)] * norm.At(t), level[b.At(t)] * norm.At(t));
      } else {
        constexpr float kMiddle = 0.5f * ((1 << kBits) - 1);
        const uint4 norms = __ldg(reinterpret_cast<const uint4*>(from + s.at.norm_at + first));  // e5m3
        const int at = (s.at.group_size > 0 ? first / s.at.group_size : 0) * kDim + channel;
        float scale[2], centre[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          scale[i] = FromF16(static_cast<uint16_t>(__ldg(from + s.at.scale_at + at + i) << 7));
          centre[i] = static_cast<float>(static_cast<int8_t>(__ldg(from + s.at.centre_at + at + i))) / 8 - kMiddle;
        }
#pragma unroll
        for (int t = 0; t < 16; ++t) {
          const float norm = FromF16(static_cast<uint16_t>((WordOf(norms, t / 4) >> (8 * (t % 4)) & 255u) << 7));
          put(t, channel, norm * (scale[0] * (static_cast<float>(a.At(t)) + centre[0])), norm * (scale[1] * (static_cast<float>(b.At(t)) + centre[1])));
        }
      }
    }
  });
}

}  // namespace kvrazor::cuda
