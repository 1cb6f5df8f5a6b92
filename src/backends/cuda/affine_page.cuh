// A sealed affine page (KIVI, OScaR) on f16 tensor cores without dequantizing it. Two warps share a page, 64 tokens each. Worked case
// D = 128, 4 query heads:
//
//   logit_t = norm_t (sum_c (q_c s_gc) code_tc + sum_c q_c o_gc),   out_c = sum_t (p_t s_tg) code_tc + sum_t p_t o_tg
//
//   operand A  codes straight from the word: w & (0x00030003 << 2j) is a pair of f16 subnormals, 4^j code 2^-24. Rows g + 8 stand two
//              bits higher than rows g and leave with a factor 4; odd tiles of the summed dimension four bits higher than even ones,
//              which operand B carries as 1/16. Codes of 4 bits: rows g + 8 four bits higher, factor 16; odd tiles are shifted down
//   operand B  keys: q times the scales, to 22 bits: column 2h is the product rounded to f16, column 2h + 1 what the rounding lost, so
//              that large logits are exact enough; values: weights times scales, f16
//   offsets    keys: rows g of A are one group of 32 tokens, rows g + 8 the other, one product for 64 tokens; values: rows are the
//              groups of channels, a running sum of its own that joins the output when the warp leaves its pages
//
// Bytes: keys 4096 (4 bits: 8192) + 2048, values likewise, norms 256; 12544 to 20736, read once.
#pragma once

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/tile_state.cuh"

namespace kvrazor::cuda {

template <int kDim_, int kTiles_, int kKeyBits, int kValueBits>
struct AffineCodec {
  static constexpr int kDim = kDim_, kTiles = kTiles_;
  using Page = AffinePage<kDim, kKeyBits, kValueBits>;
  static constexpr int kTeamWarps = 2;  // a page
  static constexpr int kTeams = 6;
  static constexpr bool kMovesRegisters = true;  // 12 consumer warps would have 128 and spill in the loop
  static constexpr int kGroups = kDim / 32;      // of channels
  static constexpr float kWeightUnit = 16;       // small weights stay f16 normals, times a scale below 4096 they do not overflow
  static constexpr float kSubnormal = 16777216;  // 2^24
  static constexpr float kKeyRows = 1 << kKeyBits, kValueRows = 1 << kValueBits;  // factor of the rows g + 8
  static constexpr float kKeyOdd = kKeyBits == 2 ? 16 : 1;                        // of odd tiles of the summed dimension
  static constexpr float kLargestQuery = 64;     // a head's queries, by a power of two: times a scale below 1024 they do not overflow

  /// Query fragments in shared memory: uint4 [D/16][32 lanes] a head tile, {high or low of q, plus or minus high} in even and odd
  /// columns; then a factor a head.
  static constexpr int kTileBytes = kDim / 16 * 512 + 16;
  static constexpr int kQueryBytes = kTiles * kTileBytes;

  struct Query {
    const uint4* fragment;
    float scale[kTiles];
  };

  /// In pages out[n][2j + r] counts kWeightUnit 2^-24 kValueRows^r, and offsets are summed apart.
  struct State : RunningSoftmax<kDim, kTiles> {
    using Base = RunningSoftmax<kDim, kTiles>;
    float offset[kTiles];  // row g % kGroups

    __device__ void Clear() {
      Base::Clear();
#pragma unroll
      for (int n = 0; n < kTiles; ++n) offset[n] = 0;
    }
    __device__ void Raise(int n, float logit) {
      const float factor = Base::Raise(n, logit);
      offset[n] *= factor;
    }
    __device__ void EnterPages() {
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) this->out[n][i] *= (i % 2 ? kValueRows : 1.f) * kWeightUnit / kSubnormal;
      }
    }
    __device__ void LeavePages() {
      const int qd = threadIdx.x & 3;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) this->out[n][i] *= (i % 2 ? 1 / kValueRows : 1.f) * kSubnormal / kWeightUnit;
#pragma unroll
        for (int group = 0; group < kGroups; ++group) {
          const float sum = __shfl_sync(~0u, offset[n], 4 * group + qd) * (1 / kWeightUnit);
#pragma unroll
          for (int i = 0; i < 4; ++i) this->out[n][4 * group + i] += sum;
        }
        offset[n] = 0;
      }
    }
  };

  /// Operand B: a lane's channels of every 16, two pairs t.
  __device__ static constexpr int ChannelOf(int t, int q) { return 2 * q + 8 * t; }

  /// x[4 i + 2 t + e]: channel 16 i + ChannelOf(t, q) + e of head (g / 2) + 4 tile, in the basis of the pages.
  __device__ static void StoreQuery(uint8_t* to, int tile, float (&x)[kDim / 4], float scale_log2) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    float largest = 1e-20f;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) largest = fmaxf(largest, fabsf(x[i]));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 1));
    largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, 2));
    const uint32_t exponent = __float_as_uint(largest) & 0x7f800000u;  // of the power of two below
    const float up = __uint_as_float(0x7f000000u - exponent) * (kLargestQuery / 2), down = __uint_as_float(exponent) * (2 / kLargestQuery);
    uint8_t* tile_at = to + tile * kTileBytes;
#pragma unroll
    for (int kt = 0; kt < kDim / 16; ++kt) {
      const float unit = kt % 2 ? up / kKeyOdd : up;
      uint32_t high[2], low[2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const float x0 = x[4 * kt + 2 * t] * unit, x1 = x[4 * kt + 2 * t + 1] * unit;
        high[t] = PackF16(x0, x1);
        low[t] = PackF16(x0 - LowF16(high[t]), x1 - HighF16(high[t]));
      }
      const uint32_t minus = g % 2 ? 0x80008000u : 0u;
      reinterpret_cast<uint4*>(tile_at)[kt * 32 + lane] = make_uint4(g % 2 ? low[0] : high[0], g % 2 ? low[1] : high[1], high[0] ^ minus, high[1] ^ minus);
    }
    if (g % 2 == 0 && q == 0) *reinterpret_cast<float*>(tile_at + kDim / 16 * 512 + (g >> 1) * 4) = scale_log2 * down;
  }

  __device__ static void LoadQuery(const uint8_t* from, Query& query) {
    const int lane = threadIdx.x & 31;
    query.fragment = reinterpret_cast<const uint4*>(from) + lane;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) query.scale[n] = *reinterpret_cast<const float*>(from + n * kTileBytes + kDim / 16 * 512 + (lane & 3) * 4);
  }

  /// Tokens [64 part, 64 part + 64) of the page as far as `visible` allows.
  template <class Visible>
  __device__ static void AttendPage(const AttendParams& a, const uint8_t* page, int part, const Query& q, const Visible& visible, State& state) {
    float logit[kTiles][8];
    KeyLogits(page, part, q, logit);
    visible.Finish(a, logit, 64 * part);
    uint32_t weight[8];
    Weights(logit, weight, state);
    AddValues(page, part, weight, state);
  }

 private:
  __device__ static uint32_t Multiply(uint32_t x, uint32_t y) {
    const half2 product = __hmul2(*reinterpret_cast<const half2*>(&x), *reinterpret_cast<const half2*>(&y));
    return *reinterpret_cast<const uint32_t*>(&product);
  }

  static __device__ uint32_t MultiplyAdd(uint32_t x, uint32_t y, uint32_t z) {
    const half2 sum = __hfma2(*reinterpret_cast<const half2*>(&x), *reinterpret_cast<const half2*>(&y), *reinterpret_cast<const half2*>(&z));
    return *reinterpret_cast<const uint32_t*>(&sum);
  }

  /// Operand B of the codes for a pair of channels, without a branch. Even columns: high * scale, rounded. Odd columns: what that lost
  /// of (high + low) * scale.
  struct ScaledQuery {
    uint32_t rounded, back, low;  // even columns: high, 0, 0; odd columns: -high, high, low

    /// own: the operand of the offsets, high in even and low in odd columns.
    __device__ ScaledQuery(uint32_t own, uint32_t signed_high, uint32_t minus_odd, uint32_t odd)
        : rounded(signed_high), back(Multiply(signed_high, minus_odd)), low(Multiply(own, odd)) {}
    __device__ uint32_t Times(uint32_t scale) const {
      return MultiplyAdd(low, scale, MultiplyAdd(back, scale, Multiply(rounded, scale)));
    }
  };

  __device__ static void KeyLogits(const uint8_t* page, int part, const Query& q, float (&logit)[kTiles][8]) {
    const int lane = threadIdx.x & 31, g = lane >> 2, qd = lane & 3;
    const uint32_t odd_column = g % 2 ? 0x3c003c00u : 0u, minus_odd_column = g % 2 ? 0xbc00bc00u : 0u;  // 1 and -1 in f16, or 0
    float code[kTiles][2][2][4] = {};   // [group of 32 tokens][16 tokens of it]
    float offset[kTiles][2][4] = {};    // [parity of kt]; rows g: first group, rows g + 8: second
    uint4 words[2][kKeyBits / 2];
#pragma unroll 1
    for (int four = 0; four < kDim / 64; ++four)
#pragma unroll
    for (int k4 = 0; k4 < 4; ++k4) {
      const int kt = 4 * four + k4;
      const int at = (part * (kDim / 16) + kt) * 64 + qd * 16, odd = k4 % 2, i = k4 / 2 * 2;
      const uint4 scales = *reinterpret_cast<const uint4*>(page + Page::kKeyScale + at);
      const uint4 offsets = *reinterpret_cast<const uint4*>(page + Page::kKeyOffset + at);
      if (k4 == 0) {
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          const int row = ((2 * part + group) * (kDim / 64) + kt / 4) * (kKeyBits / 2);
#pragma unroll
          for (int t = 0; t < kKeyBits / 2; ++t) words[group][t] = *reinterpret_cast<const uint4*>(page + Page::kKeyCodes + ((row + t) * 32 + lane) * 16);
        }
      }
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
        const uint4 f = q.fragment[n * (kTileBytes / 16) + kt * 32];
        float(&o)[4] = offset[n][odd];
        MmaF16(o[0], o[1], o[2], o[3], offsets.x, offsets.y, offsets.z, offsets.w, f.x, f.y);
        const ScaledQuery q0(f.x, f.z, minus_odd_column, odd_column), q1(f.y, f.w, minus_odd_column, odd_column);
#pragma unroll
        for (int group = 0; group < 2; ++group) {
          const uint32_t b0 = q0.Times(group ? scales.z : scales.x), b1 = q1.Times(group ? scales.w : scales.y);
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
            const uint4& w = words[group][kKeyBits == 2 ? 0 : tile];
            float(&c)[4] = code[n][group][tile];
            MmaCodes<kKeyBits>(c[0], c[1], c[2], c[3], WordOf(w, i), WordOf(w, i + 1), tile, odd, b0, b1);
          }
        }
      }
    }
    const uint4 norms = *reinterpret_cast<const uint4*>(page + Page::kTokenNorm + g * 32 + part * 16);
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int group = 0; group < 2; ++group) {
        const float(&o0)[4] = offset[n][0];
        const float(&o1)[4] = offset[n][1];
        const float shift = fmaf(kKeyOdd, o1[2 * group] + o1[2 * group + 1], o0[2 * group] + o0[2 * group + 1]) * q.scale[n];
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const float(&c)[4] = code[n][group][tile];
          const uint32_t norm = WordOf(norms, 2 * group + tile);
          const int j = 2 * (2 * group + tile);
          logit[n][j] = fmaf(c[0] + c[1], kSubnormal * q.scale[n], shift) * LowF16(norm);
          logit[n][j + 1] = fmaf(c[2] + c[3], kSubnormal / kKeyRows * q.scale[n], shift) * HighF16(norm);
        }
      }
    }
  }

  /// Codes of two words of [tile]'s rows. 2 bits: both tiles are in the word; 4 bits: a word a tile, both parities in it.
  template <int kBits>
  __device__ static void MmaCodes(float& c0, float& c1, float& c2, float& c3, uint32_t x, uint32_t y, int tile, int odd, uint32_t b0, uint32_t b1) {
    const int shift = kBits == 2 ? 8 * tile : 8 * odd;  // a mask further up would reach the exponent of an f16
    const uint32_t low = kBits == 2 ? 0x00030003u << (4 * odd) : 0x000f000fu, high = low << kBits;
    x >>= shift;
    y >>= shift;
    MmaF16(c0, c1, c2, c3, x & low, x & high, y & low, y & high, b0, b1);
  }

  __device__ static void Weights(float (&logit)[kTiles][8], uint32_t (&weight)[8], State& state) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float top = logit[n][0];
#pragma unroll
      for (int i = 1; i < 8; ++i) top = fmaxf(top, logit[n][i]);
      state.Raise(n, MaxOverRows(top));
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        logit[n][i] = Exp2(logit[n][i] - state.top[n]);
        sum += logit[n][i];
      }
      state.sum[n] += sum;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      weight[i] = Transpose8x8(PackF16(kWeightUnit * logit[0][i], kTiles == 2 ? kWeightUnit * logit[kTiles - 1][i] : 0.f));
    }
  }

  /// Column 2q is of the first tile of heads, 2q + 1 of the second; alone, the first leaves the odd columns zero.
  __device__ static void AddValues(const uint8_t* page, int part, const uint32_t (&weight)[8], State& state) {
    const int lane = threadIdx.x & 31, g = lane >> 2, qd = lane & 3;
    float offset[4] = {state.offset[0], kTiles == 2 ? state.offset[kTiles - 1] : 0.f};  // rows g; rows g + 8 are empty
    uint32_t odd_weight[2][2];
#pragma unroll
    for (int pair = 0; pair < 2; ++pair) {  // of token tiles
      const uint32_t* w = weight + 4 * pair;
      const uint4 offsets = *reinterpret_cast<const uint4*>(page + Page::kValueOffset + ((2 * part + pair) * kGroups + g % kGroups) * 64 + qd * 16);
      MmaF16(offset[0], offset[1], offset[2], offset[3], offsets.x, 0, offsets.y, 0, w[0], w[1]);
      MmaF16(offset[0], offset[1], offset[2], offset[3], offsets.z, 0, offsets.w, 0, w[2], w[3]);
      constexpr uint32_t kSixteenth = 0x2c002c00u;  // f16, twice
#pragma unroll
      for (int t = 0; t < 2; ++t) odd_weight[pair][t] = kValueBits == 2 ? Multiply(w[2 + t], kSixteenth) : w[2 + t];
    }
    state.offset[0] = offset[0];
    if constexpr (kTiles == 2) state.offset[1] = offset[1];
#pragma unroll
    for (int group = 0; group < kGroups; ++group) {
      float sum[2][4] = {};  // [tile of 16 channels]
      if constexpr (kTiles == 2) {
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
          for (int i = 0; i < 4; ++i) sum[tile][i] = state.out[i % 2][2 * (2 * group + tile) + i / 2];
        }
      }
#pragma unroll
      for (int pair = 0; pair < 2; ++pair) {
        const uint4 scales = *reinterpret_cast<const uint4*>(page + Page::kValueScale + (group * 4 + 2 * part + pair) * 64 + qd * 16);
        uint2 words[kValueBits / 2];
#pragma unroll
        for (int t = 0; t < kValueBits / 2; ++t) {
          const int row = (group * 2 + part) * (kValueBits / 2) + t;
          words[t] = *reinterpret_cast<const uint2*>(page + Page::kValueCodes + (row * 32 + lane) * 16 + 8 * pair);
        }
#pragma unroll
        for (int odd = 0; odd < 2; ++odd) {
          const uint32_t b0 = odd ? Multiply(odd_weight[pair][0], scales.z) : Multiply(weight[4 * pair], scales.x);
          const uint32_t b1 = odd ? Multiply(odd_weight[pair][1], scales.w) : Multiply(weight[4 * pair + 1], scales.y);
#pragma unroll
          for (int tile = 0; tile < 2; ++tile) {
            const uint2 x = words[kValueBits == 2 ? 0 : tile];
            float(&c)[4] = sum[tile];
            MmaCodes<kValueBits>(c[0], c[1], c[2], c[3], x.x, x.y, tile, odd, b0, b1);
          }
        }
      }
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {  // rows g, g + 8
          const int at = 2 * (2 * group + tile) + i;
          if constexpr (kTiles == 2) {
            state.out[0][at] = sum[tile][2 * i];
            state.out[1][at] = sum[tile][2 * i + 1];
          } else {
            state.out[0][at] += sum[tile][2 * i];
          }
        }
      }
    }
  }
};

}  // namespace kvrazor::cuda
