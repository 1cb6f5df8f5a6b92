// Seals the values of one head of a page with razor (formulas: backends/cpu/seal_razor_value.cc), 128 threads, u in shared memory [128][D].
//
//   1. rows -> y, rotated; norm -> e5m3; u = y / norm        thread = (token, 16 channels)
//   2. columns: range, two regressions for each of two clips  thread = channel
//   3. columns: codes of 4 tokens in a word, in place of them; words of the page: 4 channels 16 apart side by side
#pragma once

#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

/// EncodeE5M3 and DecodeE5M3 of kvrazor/layout.h.
__device__ __forceinline__ float DeviceDecodeE5M3(uint8_t b) { return FromF16(static_cast<uint16_t>(b << 7)); }
__device__ __forceinline__ uint8_t DeviceEncodeE5M3(float x) {
  if (!(x > 0)) return 0;
  if (x >= 61440.f) return 0xf7;
  const int exponent = static_cast<int>(__float_as_uint(x) >> 23) - 127;  // floor(log2 x); below -126 it does not matter
  const int step = max(exponent, -14) - 3;
  const float units = rintf(ldexpf(x, -step));
  return static_cast<uint8_t>(__half_as_ushort(__float2half_rn(ldexpf(units, step))) >> 7);
}

template <int kDim>
struct RazorValueSeal {
  using Page = RazorPage<kDim>;
  using Tile = RowTile<kDim, /*kInterleaved=*/false>;
  static constexpr int kThreads = 128;
  static constexpr int kLanes = kDim / 16;

  struct Shared {
    uint32_t tile[kTokens][kDim];
  };

  __device__ static void Run(const SealParams& p, const SealJob& job, int head, uint8_t* out, Shared& s) {
    Load(p, job, head, out, s);
    __syncthreads();
    if (threadIdx.x < kDim) {
      if (AnyExact(job)) {
        Channel<true>(job, threadIdx.x, out, s);
      } else {
        Channel<false>(job, threadIdx.x, out, s);
      }
    }
    __syncthreads();
    uint32_t* words = reinterpret_cast<uint32_t*>(out + Page::kValueCodes);
    for (int w = threadIdx.x; w < kTokens * kDim / 16; w += kThreads) {
      const int r = w % 4, lane = w / 4 % 32, dg = w / 128 % (kDim / 64), kt = w / 128 / (kDim / 64);
      const int token = 32 * kt + 16 * (r >> 1) + 2 * (lane & 3), channel = 64 * dg + (lane >> 2) + 8 * (r & 1);
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) word |= s.tile[token][channel + 16 * j] << (2 * j);
      words[w] = word;
    }
  }

 private:
  __device__ static void Load(const SealParams& p, const SealJob& job, int head, uint8_t* out, Shared& s) {
    const int tid = threadIdx.x, j = tid % kLanes, row = tid / kLanes;
    constexpr int kRows = kThreads / kLanes;
    const RowSource rows = MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, 1);
    const float rotation = RotationFactor<kDim>(p.rotate);
#pragma unroll
    for (int pass = 0; pass < kDim / 64; ++pass) {
      uint4 raw[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
#pragma unroll
        for (int c = 0; c < 2; ++c) raw[m][c] = rows.Chunk((pass * 4 + m) * kRows + row, j + c * Tile::kOther);
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int token = (pass * 4 + m) * kRows + row;
        if (!IsClean(CheckFinite(raw[m][1], CheckFinite(raw[m][0], __float2half2_rn(0.f))))) {
          MakeFinite(raw[m][0]);
          MakeFinite(raw[m][1]);
        }
        float x[16];
        Unpack(raw[m][0], rotation, &x[0]);
        Unpack(raw[m][1], rotation, &x[8]);
        if (p.rotate) Tile::Rotate(x);
        float sum = 0;
#pragma unroll
        for (int i = 0; i < 16; ++i) sum = fmaf(x[i], x[i], sum);
#pragma unroll
        for (int mask = 1; mask < kLanes; mask *= 2) sum += __shfl_xor_sync(~0u, sum, mask);
        const uint8_t norm = IsExact(job, token) ? 0 : DeviceEncodeE5M3(sqrtf(sum));
        if (j == 0) out[Page::kNorm + (token % 8) * 16 + 2 * (token / 16) + (token % 16) / 8] = norm;  // VectorPosition
        const float inverse = norm != 0 ? __fdiv_rn(1.f, DeviceDecodeE5M3(norm)) : 0.f;
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int channel = 8 * (j + (k / 2) * Tile::kOther) + 4 * (k % 2);
          *reinterpret_cast<float4*>(&s.tile[token][channel]) =
              make_float4(x[4 * k] * inverse, x[4 * k + 1] * inverse, x[4 * k + 2] * inverse, x[4 * k + 3] * inverse);
        }
      }
    }
  }

  /// A line through u: code q has the value middle + scale (q - 3/2).
  struct Clip {
    float scale, middle = 0, sum_q = 0, sum_qq = 0, sum_xq = 0;
    float inverse = 0, shift = 0;  // a third of what their names say

    __device__ void Begin() {
      inverse = scale > 0 ? __fdiv_rn(1.f / 3, scale) : 0.f;
      shift = fmaf(-middle, inverse, 0.5f);
      sum_q = sum_qq = sum_xq = 0;
    }
    __device__ void Add(float x) {
      const float q = CodeValue(SaturatedMultiplyAdd(x, inverse, shift));
      sum_q += q;
      sum_qq = fmaf(q, q, sum_qq);
      sum_xq = fmaf(x, q, sum_xq);
    }
  };
  struct Best {
    float score = 0, scale, middle = 0;
  };
  __device__ static void Regress(float sum_x, float inverse_count, Clip& clip, Best& best) {
    const float mean_q = clip.sum_q * inverse_count;
    const float variance = fmaf(-clip.sum_q, mean_q, clip.sum_qq);
    const float covariance = fmaf(-sum_x, mean_q, clip.sum_xq);
    if (!(variance > 0.25f && covariance > 0)) return;  // all codes equal, or falling
    clip.scale = __fdiv_rn(covariance, variance);
    clip.middle = fmaf(clip.scale, 1.5f - mean_q, sum_x * inverse_count);
    const float score = clip.scale * covariance;
    if (score > best.score) best = {score, clip.scale, clip.middle};
  }

  template <bool kAnyExact>
  __device__ static void Channel(const SealJob& job, int c, uint8_t* out, Shared& s) {
    constexpr float kReach = 14, kCentreSteps = 8;
    const auto counts = [&](int t) { return !kAnyExact || !IsExact(job, t); };
    const auto u = [&](int t) { return __uint_as_float(s.tile[t][c]); };
    float low = 3.402823466e38f, high = -3.402823466e38f;
    int count = 0;
#pragma unroll 8
    for (int t = 0; t < kTokens; ++t) {
      if (!counts(t)) continue;
      ++count;
      low = fminf(low, u(t));
      high = fmaxf(high, u(t));
    }
    if (count == 0) low = high = 0;
    const float mid = (high + low) * 0.5f, span = (high - low) * (1.f / 3);
    const float inverse_count = count > 0 ? 1.f / static_cast<float>(count) : 0.f;
    Clip wide{span}, narrow{span * 0.9f};
    Best best{0, span, 0};
    for (int round = 0; round < 2; ++round) {
      wide.Begin();
      narrow.Begin();
      float sum_x = 0;
#pragma unroll 8
      for (int t = 0; t < kTokens; ++t) {
        if (!counts(t)) continue;
        const float x = u(t) - mid;
        sum_x += x;
        wide.Add(x);
        narrow.Add(x);
      }
      Regress(sum_x, inverse_count, wide, best);
      Regress(sum_x, inverse_count, narrow, best);
    }
    float scale = best.scale, middle = mid + best.middle;
    const float least = fabsf(middle) / kReach;  // the centre is stored in eighths of the scale, up to 127
    if (scale < least) {
      scale = least;
      middle += least / 2;
    }
    const uint8_t stored = DeviceEncodeE5M3(scale);
    const float stored_scale = DeviceDecodeE5M3(stored);
    const float inverse = stored_scale > 0 ? __fdiv_rn(1.f, stored_scale) : 0.f;
    const float centre = fminf(fmaxf(rintf(kCentreSteps * middle * inverse), -127.f), 127.f);
    const float third = inverse * (1.f / 3);
    const float shift = stored_scale > 0 ? (1.5f - centre / kCentreSteps) * (1.f / 3) : 0.f;
    const int at = (c % 8) * (kDim / 8) + 2 * (c / 16) + (c % 16) / 8;  // VectorPosition
    out[Page::kChannelScale + at] = stored;
    out[Page::kCentre + at] = static_cast<uint8_t>(static_cast<int>(centre) & 255) ^ 128u;
    // Byte e of a word: token first + (e >> 1) + 8 (e & 1).
#pragma unroll 1
    for (int first = 0; first < kTokens; first += 16) {
#pragma unroll
      for (int q = 0; q < 4; ++q) {
        uint32_t word = 0;
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int t = first + 2 * q + (e >> 1) + 8 * (e & 1);
          const uint32_t code = BiasedCode(SaturatedMultiplyAdd(u(t), third, shift)) & 3u;
          if (counts(t)) word |= code << (8 * e);
        }
        s.tile[first + 2 * q][c] = word;
      }
    }
  }
};

}  // namespace kvrazor::cuda
