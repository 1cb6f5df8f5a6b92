// 16 tokens in 16 bits: residual window, sinks, thawed pages. Worked case D = 128:
//
//   k rows  [16][256 bytes], 16-byte chunk x of token t at chunk x ^ (t & 7): ldmatrix without bank conflicts
//   v rows  behind them
//
// logits  A = k (16 tokens x 16 channels, ldmatrix), B = q: 8 MMA;  out  A = v^T (ldmatrix.trans), B = p: 8 MMA. The state must be
// in the model's basis. 8 KB read once.
#pragma once

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/tile_state.cuh"

namespace kvrazor::cuda {

/// Tokens [0, valid) of the unit, valid >= 1; q from shared memory, in kQueryParts parts that add up: [part][D/16][32 lanes].
template <int kDim, int kTiles, int kQueryParts = 1, class Visible, class State>
__device__ __forceinline__ void AttendRows(const AttendParams& a, uint8_t* stage, const uint2* q_fragments, int valid, const Visible& visible,
                                           State& state) {
  const int lane = threadIdx.x & 31;
  const int g = lane >> 2;
  uint8_t* v_rows = stage + kRowUnit * 2 * kDim;
  if (valid < kRowUnit) {  // 0 * NaN would be NaN
    for (int at = valid * 2 * kDim + lane * 16; at < kRowUnit * 2 * kDim; at += 32 * 16) *reinterpret_cast<uint4*>(v_rows + at) = uint4{};
    __syncwarp();
  }

  float s[4] = {}, odd[4] = {};  // two chains of products
  {
    const int token = lane & 15;
    const uint32_t row = SharedAddress(stage) + token * 2 * kDim;
#pragma unroll
    for (int kt = 0; kt < kDim / 16; ++kt) {
      uint32_t k[4];
      LoadMatrices(k, row + ((2 * kt + (lane >> 4)) ^ (token & 7)) * 16);
      float(&c)[4] = kt % 2 ? odd : s;
#pragma unroll
      for (int part = 0; part < kQueryParts; ++part) {
        const uint2 q = q_fragments[(part * (kDim / 16) + kt) * 32 + lane];
        MmaF16(c[0], c[1], c[2], c[3], k[0], k[1], k[2], k[3], q.x, q.y);
      }
    }
  }

  float logit[kTiles][2];
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    logit[n][0] = g < valid ? (s[n] + odd[n]) * a.scale_log2 : kHidden;
    logit[n][1] = g + 8 < valid ? (s[n + 2] + odd[n + 2]) * a.scale_log2 : kHidden;
  }
  visible.Finish(a, logit, 0);
  float p[2][2] = {};  // [head tile][token g, g + 8]
#pragma unroll
  for (int n = 0; n < kTiles; ++n) {
    state.Raise(n, MaxOverRows(fmaxf(logit[n][0], logit[n][1])));
    p[n][0] = Exp2(logit[n][0] - state.top[n]);
    p[n][1] = Exp2(logit[n][1] - state.top[n]);
    state.sum[n] += p[n][0] + p[n][1];
  }
  const uint32_t p0 = Transpose8x8(PackF16(p[0][0], p[1][0]));
  const uint32_t p1 = Transpose8x8(PackF16(p[0][1], p[1][1]));

  const int token = (lane & 7) + 8 * (lane >> 4);
  const uint32_t row = SharedAddress(v_rows) + token * 2 * kDim;
#pragma unroll
  for (int mt = 0; mt < kDim / 16; ++mt) {
    uint32_t v[4];
    LoadMatricesTransposed(v, row + ((2 * mt + ((lane >> 3) & 1)) ^ (token & 7)) * 16);
    if constexpr (kTiles == 2) {
      MmaF16(state.out[0][2 * mt], state.out[1][2 * mt], state.out[0][2 * mt + 1], state.out[1][2 * mt + 1], v[0], v[1], v[2], v[3], p0, p1);
    } else {
      float unused0 = 0, unused1 = 0;
      MmaF16(state.out[0][2 * mt], unused0, state.out[0][2 * mt + 1], unused1, v[0], v[1], v[2], v[3], p0, p1);
    }
  }
  if (valid < kRowUnit) FenceAsyncProxy();
}

}  // namespace kvrazor::cuda
