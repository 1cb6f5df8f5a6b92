// A sealed razor page on int8 tensor cores. One warp takes a whole page, so means, channel parameters and the softmax's reductions
// are paid once for 128 tokens. Worked case D = 128, 4 query heads a tile:
//
//   logit_t = f_t mean_scale (q.mean) + s'_t (q.code_t - middle sum q)        v_tc = n_t s_c (code_tc + z_c / 8 - 1.5)
//
//   f_t        1, or the token's own factor (rank-one mean);  middle  1.5 with 2-bit keys, 3.5 with 3-bit keys
//   operand A  codes straight from the word: w & (0x03030303 << 2j) is 4^j code, one mask for four codes; 4^-j goes into s'_t
//              (keys) and the page's factor (values). u8, [16 rows x 32], 4 accumulators j a word. 3-bit keys: three words hold 8
//              fragments, six by one mask each (times 1 or 8), two joined from two words (times 32)
//   operand B  q as 16-bit integer relative to its largest channel, and p_t n_t as 16-bit integer relative to the page's largest, each
//              split into two bytes in two columns: 256 high + low is exact and meets in one lane
//   a lane     head q, tokens (channels) 16 j + g + 8 r: 16 logits, 16 outputs a head tile
//
// Bytes: keys 4096 (3 bits: 6144) + 128 + 256 (rank-one mean: + 256), values 4096 + 128 + 256 (groups of 32 tokens: 1024), header 16;
// padded to 9088 with razor-2, 11392 with razor-3, read once.
#pragma once

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/tile_state.cuh"

namespace kvrazor::cuda {

template <int kDim_, int kTiles_, int kKeyBits, bool kRankOne, int kValueGroups>
struct RazorCodec {
  static constexpr int kDim = kDim_, kTiles = kTiles_;
  using Page = RazorPage<kDim, kKeyBits, kRankOne, kValueGroups>;
  using State = RunningSoftmax<kDim, kTiles>;
  static constexpr int kTeamWarps = 1;  // a page
  static constexpr int kTeams = 8;
  static constexpr bool kMovesRegisters = kTiles == 2;  // the others fit without; moving them costs up to 1 us
  static constexpr float kLargestQuery = 32512;  // the high byte stays in s8: (32512 + 128) >> 8 = 127
  static constexpr float kLargestWeight = 65504;

  /// Query fragments in shared memory: uint4 [D/64][32 lanes] a head tile, then per head {scale_log2 * q scale, sum of q}.
  static constexpr int kTileBytes = kDim / 64 * 512 + 32;
  static constexpr int kQueryBytes = kTiles * kTileBytes;

  struct Query {
    uint32_t fragment[kTiles][kDim / 16];
    float scale[kTiles];
    float sum[kTiles];
  };

  /// Operand B: a lane's channels of every 16, two pairs t.
  __device__ static constexpr int ChannelOf(int t, int q) { return 4 * q + 2 * t; }

  /// x: channels 16 i + 4 q + e of head (g / 2) + 4 tile as x[4 i + e], rotated. Even g writes the high bytes, odd g the low ones.
  __device__ static void StoreQuery(uint8_t* to, int tile, float (&x)[kDim / 4], float scale_log2) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    float largest = 1e-20f;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) largest = fmaxf(largest, fabsf(x[i]));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    // value + 1.5 2^23 has the integer in its low bits; with 128 on top its second byte is the high one, and value - 256 high is in s8
    const float factor = __fdividef(kLargestQuery, largest), round = 12582912.f + (g % 2 ? 0.f : 128.f);
    const uint32_t bytes = g % 2 ? 0x0040 : 0x0051;
    int sum = 0;  // of this lane's bytes
    uint32_t words[kDim / 16];
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint32_t value[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) value[e] = __float_as_uint(fmaf(x[4 * i + e], factor, round));
      words[i] = __byte_perm(__byte_perm(value[0], value[1], bytes), __byte_perm(value[2], value[3], bytes), 0x5410);
      sum = __dp4a(static_cast<int>(words[i]), 0x01010101, sum);
    }
    sum += __shfl_xor_sync(~0u, sum, 1);
    sum += __shfl_xor_sync(~0u, sum, 2);
    sum = 256 * sum + __shfl_xor_sync(~0u, sum, 4);  // even g: high bytes here, low ones there
    uint8_t* tile_at = to + tile * kTileBytes;
#pragma unroll
    for (int i = 0; i < kDim / 64; ++i) {
      *reinterpret_cast<uint4*>(tile_at + (i * 32 + lane) * 16) = make_uint4(words[4 * i], words[4 * i + 1], words[4 * i + 2], words[4 * i + 3]);
    }
    if (g % 2 == 0 && q == 0) {
      *reinterpret_cast<float2*>(tile_at + kDim / 64 * 512 + (g >> 1) * 8) =
          make_float2(scale_log2 * largest * (1 / kLargestQuery), static_cast<float>(sum));
    }
  }

  __device__ static void LoadQuery(const uint8_t* from, Query& query) {
    const int lane = threadIdx.x & 31, q = lane & 3;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      const uint8_t* tile_at = from + n * kTileBytes;
#pragma unroll
      for (int i = 0; i < kDim / 64; ++i) {
        const uint4 w = *reinterpret_cast<const uint4*>(tile_at + (i * 32 + lane) * 16);
#pragma unroll
        for (int k = 0; k < 4; ++k) query.fragment[n][4 * i + k] = WordOf(w, k);
      }
      const float2 scalars = *reinterpret_cast<const float2*>(tile_at + kDim / 64 * 512 + q * 8);
      query.scale[n] = scalars.x;
      query.sum[n] = scalars.y;
    }
  }

  /// The tokens of the page that `visible` allows.
  template <class Visible>
  __device__ static void AttendPage(const AttendParams& a, const uint8_t* page, int /*part*/, const Query& q, const Visible& visible, State& state) {
    float logit[kTiles][16], scale[kTiles];
    const float base = KeyLogits(page, q, logit);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) scale[n] = q.scale[n] * base;
    if (__builtin_expect(!visible.plain, false)) {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 16; ++i) logit[n][i] *= scale[n];
        scale[n] = 1;
      }
      visible.Finish(a, logit, 0);
    }
    uint32_t weight[kTiles][8];
    float factor[kTiles];
    Weights(page, scale, logit, weight, factor, state);
    AddValues(page, weight, factor, state);
  }

 private:
  __device__ static uint32_t ByteOf(const uint4& v, int i) { return __byte_perm(WordOf(v, i >> 2), 0, 0x4440 + (i & 3)); }

  /// e5m3 bytes 2j and 2j + 1: f16 = byte << 7.
  __device__ static void ReadE5M3(uint32_t word, int j, float& x, float& y) {
    const uint32_t pair = __byte_perm(word, 0, (j & 1) ? 0x3424 : 0x1404) >> 1;
    x = LowF16(pair);
    y = HighF16(pair);
  }

  /// Tiles of 16 tokens that meet in the same words.
  static constexpr int kBatch = kKeyBits == 2 ? 4 : 8;
  static constexpr int kWordsOfBatch = kKeyBits == 2 ? 1 : 3;
  struct KeyWords {
    uint4 of[kWordsOfBatch];
  };
  __device__ static void LoadKeys(const uint8_t* page, int row, KeyWords& words) {
#pragma unroll
    for (int w = 0; w < kWordsOfBatch; ++w) {
      words.of[w] = *reinterpret_cast<const uint4*>(page + Page::kKeyCodes + ((row + w) * 32 + (threadIdx.x & 31)) * 16);
    }
  }
  /// Word r of the operand of tile j of a batch: codes times 2^KeyShift(j).
  __device__ static uint32_t KeyFragment(const KeyWords& words, int j, int r) {
    if constexpr (kKeyBits == 2) {
      return WordOf(words.of[0], r) & (0x03030303u << (2 * j));
    } else {
      if (j < 6) return WordOf(words.of[j / 2], r) & (0x07070707u << (3 * (j % 2)));
      return (WordOf(words.of[j == 6 ? 0 : 2], r) & 0xc0c0c0c0u) | ((WordOf(words.of[1], r) >> (j - 5)) & 0x20202020u);
    }
  }
  __device__ static constexpr int KeyShift(int j) { return kKeyBits == 2 ? 2 * j : j < 6 ? 3 * (j % 2) : 5; }

  /// What the page mean adds to token 16 (i / 2) + g + 8 (i % 2).
  __device__ static float MeanTerm(const uint8_t* page, int g, int i, float q_mean) {
    if constexpr (kRankOne) {
      const uint32_t pair = *reinterpret_cast<const uint32_t*>(page + Page::kMeanFactor + g * 32 + i / 2 * 4);
      return (i % 2 ? HighF16(pair) : LowF16(pair)) * q_mean;
    } else {
      return q_mean;
    }
  }

  /// logit / (scale * q scale * base); returns base.
  __device__ static float KeyLogits(const uint8_t* page, const Query& q, float (&logit)[kTiles][16]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, qd = lane & 3;
    const uint4 header = *reinterpret_cast<const uint4*>(page + Page::kHeader);
    float base = __uint_as_float(header.x);
    base = base > 0 ? base : 1.f;
    const float mean_scale = __fdividef(__uint_as_float(header.y), base);

    float q_mean[kTiles];
    {
      int c[kTiles][4] = {};  // c0, c1: high byte of the mean times high, low byte of q; c2, c3: low byte of the mean
#pragma unroll
      for (int kt = 0; kt < kDim / 32; ++kt) {
        const uint4 m = *reinterpret_cast<const uint4*>(page + Page::kMean + kt * 64 + qd * 16);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) MmaS8S8(c[n], m.x, m.y, m.z, m.w, q.fragment[n][2 * kt], q.fragment[n][2 * kt + 1]);
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const float high = static_cast<float>(c[n][0] * 256 + c[n][1] + c[n][2]);
        q_mean[n] = fmaf(128.f, q.sum[n], fmaf(high, 256.f, static_cast<float>(c[n][3]))) * mean_scale;
      }
    }

    const uint4 scales = *reinterpret_cast<const uint4*>(page + Page::kTokenScale + g * 16);
#pragma unroll
    for (int batch = 0; batch < 8 / kBatch; ++batch) {
      int c[kTiles][kBatch][4] = {};
#pragma unroll
      for (int kt = 0; kt < kDim / 32; ++kt) {
        KeyWords words;
        LoadKeys(page, (kt * (8 / kBatch) + batch) * kWordsOfBatch, words);
#pragma unroll
        for (int j = 0; j < kBatch; ++j) {
          uint32_t f[4];
#pragma unroll
          for (int r = 0; r < 4; ++r) f[r] = KeyFragment(words, j, r);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) MmaU8S8(c[n][j], f[0], f[1], f[2], f[3], q.fragment[n][2 * kt], q.fragment[n][2 * kt + 1]);
        }
      }
#pragma unroll
      for (int j = 0; j < kBatch; ++j) {
        const int i = 2 * (kBatch * batch + j), shift = KeyShift(j);
        // e3m5 times 2^-shift, straight into the fields of a float: exponent (b >> 5) - 7 - shift, mantissa b & 31
        const uint32_t bias = (127u - 7u - static_cast<uint32_t>(shift)) << 23;
        const float s0 = __uint_as_float((ByteOf(scales, i) << 18) + bias);
        const float s1 = __uint_as_float((ByteOf(scales, i + 1) << 18) + bias);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          const float middle = -0.5f * static_cast<float>(((1 << kKeyBits) - 1) << shift) * q.sum[n];
          logit[n][i] = fmaf(s0, static_cast<float>(c[n][j][0] * 256 + c[n][j][1]) + middle, MeanTerm(page, g, i, q_mean[n]));
          logit[n][i + 1] = fmaf(s1, static_cast<float>(c[n][j][2] * 256 + c[n][j][3]) + middle, MeanTerm(page, g, i + 1, q_mean[n]));
        }
      }
    }
    if (header.z) {  // a zero scale has no pattern of its own in the shortcut above
#pragma unroll
      for (int i = 0; i < 16; ++i) {
#pragma unroll
        for (int n = 0; n < kTiles; ++n) logit[n][i] = ByteOf(scales, i) == 0 ? MeanTerm(page, g, i, q_mean[n]) : logit[n][i];
      }
    }
    return base;
  }

  /// p_t n_t as B fragments; factor takes them back to the running softmax's units.
  __device__ static void Weights(const uint8_t* page, const float (&scale)[kTiles], float (&logit)[kTiles][16], uint32_t (&weight)[kTiles][8],
                                 float (&factor)[kTiles], State& state) {
    const int g = (threadIdx.x & 31) >> 2;
    const uint4 norms = *reinterpret_cast<const uint4*>(page + Page::kNorm + g * 16);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float top = logit[n][0];
#pragma unroll
      for (int i = 1; i < 16; ++i) top = fmaxf(top, logit[n][i]);
      top = MaxOverRows(top);
      const float page_top = fmaxf(top * scale[n], kNoLogit);
      float sum = 0, largest = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        float n0, n1;
        ReadE5M3(WordOf(norms, j >> 1), j, n0, n1);
        const float p0 = Exp2(fmaf(logit[n][2 * j], scale[n], -page_top));
        const float p1 = Exp2(fmaf(logit[n][2 * j + 1], scale[n], -page_top));
        sum += p0 + p1;
        logit[n][2 * j] = p0 * n0;
        logit[n][2 * j + 1] = p1 * n1;
        largest = fmaxf(largest, fmaxf(logit[n][2 * j], logit[n][2 * j + 1]));
      }
      largest = fmaxf(MaxOverRows(largest), 1e-30f);
      const float to_integer = __fdividef(kLargestWeight, largest);
#pragma unroll
      for (int j = 0; j < 8; ++j) {
        constexpr float kRound = 8388608;  // 2^23: the sum's low bits are the rounded integer
        const uint32_t w0 = __float_as_uint(fmaf(logit[n][2 * j], to_integer, kRound));
        const uint32_t w1 = __float_as_uint(fmaf(logit[n][2 * j + 1], to_integer, kRound));
        weight[n][j] = Transpose8x8(__byte_perm(w0, w1, 0x4051));  // high bytes of tokens g, g + 8, then the low bytes
      }
      state.Raise(n, page_top);
      const float page_factor = Exp2(page_top - state.top[n]);
      state.sum[n] = fmaf(page_factor, sum, state.sum[n]);
      factor[n] = page_factor * largest * (1.f / kLargestWeight);
    }
  }

  __device__ static void AddValues(const uint8_t* page, const uint32_t (&weight)[kTiles][8], const float (&factor)[kTiles], State& state) {
    const int lane = threadIdx.x & 31, g = lane >> 2;
    constexpr int kSteps = 4 / kValueGroups;  // of 32 tokens
#pragma unroll
    for (int group = 0; group < kValueGroups; ++group) {
      float weight_sum[kTiles];
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        constexpr uint32_t kOnes = 0x01010101u;
        int c[4] = {};
#pragma unroll
        for (int kt = group * kSteps; kt < (group + 1) * kSteps; ++kt) {
          MmaU8U8(c, kOnes, kOnes, kOnes, kOnes, weight[n][2 * kt], weight[n][2 * kt + 1]);
        }
        weight_sum[n] = static_cast<float>(c[0] * 256 + c[1]) * factor[n];
      }
      uint32_t scales[kDim / 32], centres[kDim / 32];
#pragma unroll
      for (int i = 0; i < kDim / 32; ++i) {
        const int at = group * kDim + g * (kDim / 8) + 4 * i;
        scales[i] = *reinterpret_cast<const uint32_t*>(page + Page::kChannelScale + at);
        centres[i] = *reinterpret_cast<const uint32_t*>(page + Page::kCentre + at);
      }
#pragma unroll
      for (int dg = 0; dg < kDim / 64; ++dg) {
        int c[kTiles][4][4] = {};
#pragma unroll
        for (int kt = group * kSteps; kt < (group + 1) * kSteps; ++kt) {
          const uint4 w = *reinterpret_cast<const uint4*>(page + Page::kValueCodes + ((kt * (kDim / 64) + dg) * 32 + lane) * 16);
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const uint32_t mask = 0x03030303u << (2 * j);
#pragma unroll
            for (int n = 0; n < kTiles; ++n) {
              MmaU8U8(c[n][j], w.x & mask, w.y & mask, w.z & mask, w.w & mask, weight[n][2 * kt], weight[n][2 * kt + 1]);
            }
          }
        }
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int tile = 4 * dg + j;
          float s0, s1;
          ReadE5M3(scales[tile >> 1], tile, s0, s1);
          // z / 8 - 1.5 from the byte z + 128: f16 1024 + byte, times 1/8, minus 145.5; exact
          const uint32_t biased = __byte_perm(centres[tile >> 1], 0x64646464u, (tile & 1) ? 0x4342 : 0x4140);
          const half2 centre = __hfma2(*reinterpret_cast<const half2*>(&biased), __float2half2_rn(0.125f), __float2half2_rn(-145.5f));
          const float2 offset = __half22float2(centre);
#pragma unroll
          for (int n = 0; n < kTiles; ++n) {
            const float unit = factor[n] * (1.f / static_cast<float>(1 << (2 * j)));
            const float v0 = static_cast<float>(c[n][j][0] * 256 + c[n][j][1]) * unit;
            const float v1 = static_cast<float>(c[n][j][2] * 256 + c[n][j][3]) * unit;
            state.out[n][2 * tile] = fmaf(s0, fmaf(offset.x, weight_sum[n], v0), state.out[n][2 * tile]);
            state.out[n][2 * tile + 1] = fmaf(s1, fmaf(offset.y, weight_sum[n], v1), state.out[n][2 * tile + 1]);
          }
        }
      }
    }
  }
};

}  // namespace kvrazor::cuda
