// A sealed affine page (KIVI, OScaR) on f16 tensor cores without dequantizing it. One warp takes a whole page. Worked case D = 128:
//
//   logit_t = norm_t (sum_c (q_c s_gc) (code_tc - 1.5) + sum_c q_c (o_gc + 1.5 s_gc)),   out_c likewise from p_t, s_tg, o_tg
//
//   operand A  codes straight from the word: w & (0x00030003 << 2j) is a pair of f16 subnormals, 4^j code 2^-24. Rows g + 8 stand two
//              bits higher than rows g, odd tiles four bits higher than even ones (an accumulator of their own); the factors come
//              out after the sum
//   operand B  q times the scales, a pair of f16 multiplications for 32 tokens; or the weights times the scales
//   offsets    two more products shared by the 32 tokens (channels) of a group: o + 1.5 s in every row of A with q, and -1.5 with the
//              same rounded operand B as the codes, so that its rounding meets code - 1.5, not the code (half the error)
//   keys       rows of A = tokens, summed over channels;   values  rows = channels, summed over tokens: the same words
//
// Bytes: keys 4096 + 2048, values 4096 + 2048, norms 256; 12544, read once.
#pragma once

#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/tile_state.cuh"

namespace kvrazor::cuda {

template <int kDim, int kTiles>
struct AffineCodec {
  using Page = AffinePage<kDim>;
  using State = RunningSoftmax<kDim, kTiles>;
  static constexpr int kQueryBytes = kF16QueryBytes<kDim>;
  static constexpr float kWeightUnit = 16;  // small weights stay f16 normals, times a scale below 4096 they do not overflow

  struct Query {
    uint2 fragment[kDim / 16];
    float scale;
  };

  __device__ static void LoadQuery(const uint8_t* from, float scale_log2, Query& query) {
    const int lane = threadIdx.x & 31;
#pragma unroll
    for (int kt = 0; kt < kDim / 16; ++kt) query.fragment[kt] = reinterpret_cast<const uint2*>(from)[kt * 32 + lane];
    query.scale = scale_log2;
  }

  /// Tokens [first, last) of the page, at least one of them.
  __device__ static void AttendPage(const uint8_t* page, const Query& q, int first, int last, State& state) {
    float logit[kTiles][16];
    KeyLogits(page, q, first, last, logit);
    uint32_t weight[16];
    Weights(logit, weight, state);
    AddValues(page, weight, state);
  }

 private:
  /// Products of one group: 32 rows of A (two tiles) with all of the summed dimension.
  struct GroupSum {
    float code[2][2][4] = {};   // [odd tile of the summed dimension][tile of rows][fragment]
    float offset[4] = {};       // two accumulators, so that neither is a long chain
    float middle[4] = {};

    /// Rows g (high = 0) or g + 8 of a tile, head tile n.
    __device__ float Value(int tile, int high, int n) const {
      constexpr float kSubnormal = 16777216;  // 2^24
      const float factor = high ? kSubnormal / 4 : kSubnormal;
      return fmaf(factor, fmaf(code[1][tile][2 * high + n], 1.f / 16, code[0][tile][2 * high + n]), offset[n] + middle[n]);
    }
  };

  __device__ static uint32_t Multiply(uint32_t x, uint32_t y) {
    const half2 product = __hmul2(*reinterpret_cast<const half2*>(&x), *reinterpret_cast<const half2*>(&y));
    return *reinterpret_cast<const uint32_t*>(&product);
  }

  __device__ static uint32_t MultiplyAdd(uint32_t x, uint32_t y, uint32_t z) {
    const half2 sum = __hfma2(*reinterpret_cast<const half2*>(&x), *reinterpret_cast<const half2*>(&y), *reinterpret_cast<const half2*>(&z));
    return *reinterpret_cast<const uint32_t*>(&sum);
  }

  /// Group p of one side; b_of(kt) gives the B fragment before scaling.
  template <int kTilesSummed, class BOf>
  __device__ static void SumGroup(const uint8_t* codes, const uint8_t* params, int p, BOf b_of, GroupSum& sum) {
    const int lane = threadIdx.x & 31, qd = lane & 3;
#pragma unroll
    for (int quad = 0; quad < kTilesSummed / 4; ++quad) {
      const uint4 words = *reinterpret_cast<const uint4*>(codes + ((p * (kTilesSummed / 4) + quad) * 32 + lane) * 16);
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const int kt = 4 * quad + i, odd = i % 2;
        const uint4 param = *reinterpret_cast<const uint4*>(params + ((p * kTilesSummed + kt) * 4 + qd) * 16);
        const uint2 b = b_of(kt);
        const uint32_t b0 = Multiply(b.x, param.x), b1 = Multiply(b.y, param.y);
        const uint32_t low = 0x00030003u << (4 * odd), high = 0x000c000cu << (4 * odd);
#pragma unroll
        for (int tile = 0; tile < 2; ++tile) {
          const uint32_t x = WordOf(words, i / 2 * 2) >> (8 * tile), y = WordOf(words, i / 2 * 2 + 1) >> (8 * tile);
          float(&c)[4] = sum.code[odd][tile];
          MmaF16(c[0], c[1], c[2], c[3], x & low, x & high, y & low, y & high, b0, b1);
        }
        constexpr uint32_t kMiddle = 0x3e003e00u, kMinusMiddle = 0xbe00be00u;  // 1.5 and -1.5 in f16, twice
        const uint32_t centre0 = MultiplyAdd(kMiddle, param.x, param.z), centre1 = MultiplyAdd(kMiddle, param.y, param.w);
        float(&o)[4] = sum.offset;
        float(&m)[4] = sum.middle;
        MmaF16(o[0], o[1], o[2], o[3], centre0, centre0, centre1, centre1, b.x, b.y);
        MmaF16(m[0], m[1], m[2], m[3], kMinusMiddle, kMinusMiddle, kMinusMiddle, kMinusMiddle, b0, b1);
      }
    }
  }

  __device__ static void KeyLogits(const uint8_t* page, const Query& q, int first, int last, float (&logit)[kTiles][16]) {
    const int g = (threadIdx.x & 31) >> 2;
    const uint4 norms[2] = {*reinterpret_cast<const uint4*>(page + Page::kTokenNorm + g * 32),
                            *reinterpret_cast<const uint4*>(page + Page::kTokenNorm + g * 32 + 16)};
#pragma unroll
    for (int p = 0; p < 4; ++p) {
      GroupSum sum;
      SumGroup<kDim / 16>(page + Page::kKeyCodes, page + Page::kKeyParams, p, [&](int kt) { return q.fragment[kt]; }, sum);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const int j = 2 * p + tile;
        const uint32_t norm = WordOf(norms[j >> 2], j & 3);
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          logit[n][2 * j] = sum.Value(tile, 0, n) * (LowF16(norm) * q.scale);
          logit[n][2 * j + 1] = sum.Value(tile, 1, n) * (HighF16(norm) * q.scale);
        }
      }
    }
    if (first == 0 && last == kTokens) return;
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      const int token = 16 * (i >> 1) + g + 8 * (i & 1);
      if (token >= first && token < last) continue;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) logit[n][i] = kNoLogit;
    }
  }

  __device__ static void Weights(float (&logit)[kTiles][16], uint32_t (&weight)[16], State& state) {
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
      float top = logit[n][0];
#pragma unroll
      for (int i = 1; i < 16; ++i) top = fmaxf(top, logit[n][i]);
      state.Raise(n, MaxOverRows(top));
      float sum = 0;
#pragma unroll
      for (int i = 0; i < 16; ++i) {
        logit[n][i] = Exp2(logit[n][i] - state.top[n]);
        sum += logit[n][i];
      }
      state.sum[n] += sum;
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
      weight[i] = Transpose8x8(PackF16(kWeightUnit * logit[0][i], kTiles == 2 ? kWeightUnit * logit[kTiles - 1][i] : 0.f));
    }
  }

  __device__ static void AddValues(const uint8_t* page, const uint32_t (&weight)[16], State& state) {
#pragma unroll
    for (int p = 0; p < kDim / 32; ++p) {
      GroupSum sum;
      SumGroup<8>(page + Page::kValueCodes, page + Page::kValueParams, p,
                  [&](int kt) { return make_uint2(weight[2 * kt], weight[2 * kt + 1]); }, sum);
#pragma unroll
      for (int tile = 0; tile < 2; ++tile) {
        const int j = 2 * p + tile;
#pragma unroll
        for (int n = 0; n < kTiles; ++n) {
          state.out[n][2 * j] = fmaf(1 / kWeightUnit, sum.Value(tile, 0, n), state.out[n][2 * j]);
          state.out[n][2 * j + 1] = fmaf(1 / kWeightUnit, sum.Value(tile, 1, n), state.out[n][2 * j + 1]);
        }
      }
    }
  }
};

}  // namespace kvrazor::cuda
