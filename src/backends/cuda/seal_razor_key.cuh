// Seals the keys of one head of a page with razor (formulas: backends/cpu/seal_razor_key.cc), 128 threads. Values lie in shared memory,
// [128 tokens][D] words in chunks of 4 channels, chunk x of token t at x ^ Swizzle(t); a warp's 32 tokens are its own from step 2 on.
//
//   1. rows  -> y, rotated; column sums -> mean                                        thread = (token, 16 channels)
//   2. token -> r = y - mean, the best of ten scales s; r / s as two f16 (high + low)  thread = token
//   3. v = r / s (I + W), block of 16 channels by block, last first                   mma: high high + low high + high low
//   4. blocks, first first: b = levels of earlier blocks times W (mma, levels are exact in f16, W = high + low); then channel by
//      channel: code = rne(v - b + 3/2), b of the block's later channels += W level    thread = token
//      feedback in units of s: x / s = v - b, because e = r - s l and x = r + W^T e
//      gain = sum d v^2 / sum d v (l + b)
//   5. codes of 4 channels in a word -> words of the page: 4 tokens 16 apart side by side
//
// Products of 3 and 4 lose 2^-22 of a term: a code differs from float64's only where x / s is that close to a half.
#pragma once

#include "src/backends/cuda/metric_layout.h"
#include "src/backends/cuda/ptx.cuh"
#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

/// EncodeE3M5 of kvrazor/layout.h; base is a power of two or 0.
__device__ __forceinline__ uint8_t DeviceEncodeE3M5(float x, float base) {
  if (!(x > 0) || !(base > 0)) return 0;
  const float r = x / base;
  if (r >= 1.f + 31.f / 32) return 255;
  const int octave = max(static_cast<int>(__float_as_uint(r) >> 23) - 127, -7);  // subnormals are below the range
  const int units = static_cast<int>(rintf(ldexpf(r, 5 - octave)));
  constexpr float kLeast = 0x1p-7f * (1 + 1.f / 32);
  if (units < 32) return r > 0.5f * kLeast ? 1 : 0;
  const int code = ((octave + 7) << 5) + (units - 32);
  return static_cast<uint8_t>(code == 0 ? 1 : code);
}

template <int kDim>
struct RazorKeySeal {
  using Page = RazorPage<kDim>;
  using Tile = RowTile<kDim, /*kInterleaved=*/false>;
  using Metric = MetricLayout<kDim>;
  static constexpr int kThreads = 128;
  static constexpr int kLanes = kDim / 16;  // threads a token in step 1
  static constexpr int kPasses = kDim / 64;
  static constexpr int kBlocks = Metric::kBlocks;

  struct Shared {
    uint32_t tile[kTokens][kDim];
    float scratch[4][32][16];   // b of a block, by token; partial column sums before that
    float mean[kDim];
    float reduce[8];
    float scale[kTokens];       // s'
    int16_t stored_mean[kDim];
  };

  __device__ static void Run(const SealParams& p, const SealJob& job, int head, uint8_t* out, Shared& s) {
    LoadAndSum(p, job, head, s);
    __syncthreads();
    Mean(job, s);
    __syncthreads();
    const int token = threadIdx.x;
    const float scale = IsExact(job, token) ? 0.f : BestScale(token, s);
    Divide(token, scale, s);
    __syncwarp();
    const uint8_t* metric = p.metric ? p.metric + int64_t{head} * Metric::kBytes : nullptr;
    if (metric) Image(metric, s);
    const float gain = Codes(metric, scale, s);
    s.scale[token] = gain * scale;
    __syncthreads();
    Store(s, out);
  }

 private:
  __device__ static int Swizzle(int token) { return ((token & 1) << 2) | ((token >> 1) & 3); }
  __device__ static uint4* Chunk(Shared& s, int token, int chunk) {
    return reinterpret_cast<uint4*>(s.tile[token]) + (chunk ^ Swizzle(token));
  }
  __device__ static float4* FloatChunk(Shared& s, int token, int chunk) { return reinterpret_cast<float4*>(Chunk(s, token, chunk)); }

  // ---- 1
  __device__ static void LoadAndSum(const SealParams& p, const SealJob& job, int head, Shared& s) {
    const int tid = threadIdx.x, j = tid % kLanes, row = tid / kLanes;
    constexpr int kRows = kThreads / kLanes;
    const RowSource rows = MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, 0);
    const float rotation = RotationFactor<kDim>(p.rotate);
    float sum[16] = {};
#pragma unroll
    for (int pass = 0; pass < kPasses; ++pass) {
      uint4 raw[4][2];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int token = (pass * 4 + m) * kRows + row;
#pragma unroll
        for (int c = 0; c < 2; ++c) raw[m][c] = rows.Chunk(token, j + c * Tile::kOther);
      }
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int token = (pass * 4 + m) * kRows + row;
        if (!IsClean(CheckFinite(raw[m][1], CheckFinite(raw[m][0], __float2half2_rn(0.f))))) {
          MakeFinite(raw[m][0]);
          MakeFinite(raw[m][1]);
        }
        float x[16];
        const float factor = IsExact(job, token) ? 0.f : rotation;
        Unpack(raw[m][0], factor, &x[0]);
        Unpack(raw[m][1], factor, &x[8]);
        if (p.rotate) Tile::Rotate(x);
#pragma unroll
        for (int i = 0; i < 16; ++i) sum[i] += x[i];
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          const int chunk = 2 * (j + (k / 2) * Tile::kOther) + k % 2;
          *FloatChunk(s, token, chunk) = make_float4(x[4 * k], x[4 * k + 1], x[4 * k + 2], x[4 * k + 3]);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < 16; ++i) {
#pragma unroll
      for (int mask = kLanes; mask < 32; mask *= 2) sum[i] += __shfl_xor_sync(~0u, sum[i], mask);
    }
    if ((tid & 31) < kLanes) {
      float* partial = &s.scratch[0][0][0] + (tid / 32) * kDim;
#pragma unroll
      for (int i = 0; i < 16; ++i) partial[8 * (j + (i / 8) * Tile::kOther) + i % 8] = sum[i];
    }
  }

  __device__ static void Mean(const SealJob& job, Shared& s) {
    const int tid = threadIdx.x;
    const int count = kTokens - __popc(job.exact[0]) - __popc(job.exact[1]) - __popc(job.exact[2]) - __popc(job.exact[3]);
    float mean = 0;
    if (tid < kDim && count > 0) {
      const float* partial = &s.scratch[0][0][0] + tid;
      mean = ((partial[0] + partial[kDim]) + (partial[2 * kDim] + partial[3 * kDim])) * (1.f / static_cast<float>(count));
    }
    float largest = fabsf(mean);
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    if ((tid & 31) == 0) s.reduce[tid / 32] = largest;
    __syncthreads();
    const float scale = fmaxf(fmaxf(s.reduce[0], s.reduce[1]), fmaxf(s.reduce[2], s.reduce[3])) / 32767.f;
    if (tid == 0) s.reduce[4] = scale;
    if (tid < kDim) {
      const float steps = scale > 0 ? fminf(fmaxf(rintf(mean / scale), -32767.f), 32767.f) : 0.f;
      s.stored_mean[tid] = static_cast<int16_t>(steps);
      s.mean[tid] = steps * scale;
    }
  }

  // ---- 2. 2 bits: |l| is 3/2 where |r| > s, else 1/2, so <r, l> = sum|r| / 2 + sum of the |r| above s.
  __device__ static float BestScale(int token, Shared& s) {
    constexpr int kClips = 5;
    float sum = 0, largest = 0;
#pragma unroll 4
    for (int x = 0; x < kDim / 4; ++x) {
      float4* at = FloatChunk(s, token, x);
      const float4 mean = *reinterpret_cast<const float4*>(&s.mean[4 * x]);
      float4 r = *at;
      r = make_float4(r.x - mean.x, r.y - mean.y, r.z - mean.z, r.w - mean.w);
      *at = r;
      sum += fabsf(r.x);
      sum += fabsf(r.y);
      sum += fabsf(r.z);
      sum += fabsf(r.w);
      largest = fmaxf(fmaxf(largest, fmaxf(fabsf(r.x), fabsf(r.y))), fmaxf(fabsf(r.z), fabsf(r.w)));
    }
    float clip[kClips];
#pragma unroll
    for (int i = 0; i < kClips; ++i) clip[i] = largest * ((1.f - 0.1f * i) * 2 / 3);
    float best_score = 0, best = 0;
    for (int round = 0; round < 2; ++round) {
      float above[kClips] = {}, count[kClips] = {};
#pragma unroll 2
      for (int x = 0; x < kDim / 4; ++x) {
        const float4 r = *FloatChunk(s, token, x);
        const float values[4] = {fabsf(r.x), fabsf(r.y), fabsf(r.z), fabsf(r.w)};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
#pragma unroll
          for (int i = 0; i < kClips; ++i) {
            if (values[e] > clip[i]) {
              above[i] += values[e];
              count[i] += 1.f;
            }
          }
        }
      }
#pragma unroll
      for (int i = 0; i < kClips; ++i) {
        const float a = 0.5f * sum + above[i];
        const float b = fmaf(count[i], 2.f, 0.25f * kDim);
        clip[i] = __fdiv_rn(a, b);
        const float score = a * clip[i];
        if (score > best_score) {
          best_score = score;
          best = clip[i];
        }
      }
    }
    return best;
  }

  /// r / s as a pair of f16: low half = its rounding, high half = what is left.
  __device__ static uint32_t Split(float x) {
    const half high = __float2half_rn(x);
    const half low = __float2half_rn(x - __half2float(high));
    return __half_as_ushort(high) | static_cast<uint32_t>(__half_as_ushort(low)) << 16;
  }
  __device__ static float Joined(uint32_t w) { return LowF16(w) + HighF16(w); }

  __device__ static void Divide(int token, float scale, Shared& s) {
    const float inverse = scale > 0 ? __fdiv_rn(1.f, scale) : 0.f;
#pragma unroll 4
    for (int x = 0; x < kDim / 4; ++x) {
      const float4 r = *FloatChunk(s, token, x);
      *Chunk(s, token, x) = make_uint4(Split(r.x * inverse), Split(r.y * inverse), Split(r.z * inverse), Split(r.w * inverse));
    }
  }

  // ---- 3
  __device__ static uint4 Fragment(const uint8_t* metric, int kt, int nt) {
    return __ldg(reinterpret_cast<const uint4*>(metric + Metric::kFragments) + (kt * (kDim / 8) + nt) * 32 + (threadIdx.x & 31));
  }
  __device__ static void Image(const uint8_t* metric, Shared& s) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    const int first = threadIdx.x & ~31;
#pragma unroll 1
    for (int block = kBlocks - 1; block >= 0; --block) {
      float acc[2][2][4] = {};  // [16 tokens][8 channels]
      uint4 next[2] = {Fragment(metric, 0, 2 * block), Fragment(metric, 0, 2 * block + 1)};
#pragma unroll 1
      for (int kt = 0; kt <= block; ++kt) {
        const uint4 b[2] = {next[0], next[1]};
        const int later = min(kt + 1, block);
        next[0] = Fragment(metric, later, 2 * block);
        next[1] = Fragment(metric, later, 2 * block + 1);
#pragma unroll
        for (int mt = 0; mt < 2; ++mt) {
          const uint4 top = *Chunk(s, first + 16 * mt + g, 4 * kt + q);
          const uint4 bottom = *Chunk(s, first + 16 * mt + g + 8, 4 * kt + q);
          const uint32_t h0 = __byte_perm(top.x, top.y, 0x5410), h1 = __byte_perm(bottom.x, bottom.y, 0x5410);
          const uint32_t h2 = __byte_perm(top.z, top.w, 0x5410), h3 = __byte_perm(bottom.z, bottom.w, 0x5410);
          const uint32_t l0 = __byte_perm(top.x, top.y, 0x7632), l1 = __byte_perm(bottom.x, bottom.y, 0x7632);
          const uint32_t l2 = __byte_perm(top.z, top.w, 0x7632), l3 = __byte_perm(bottom.z, bottom.w, 0x7632);
#pragma unroll
          for (int n = 0; n < 2; ++n) {
            float(&c)[4] = acc[mt][n];
            MmaF16(c[0], c[1], c[2], c[3], h0, h1, h2, h3, b[n].x, b[n].y);
            MmaF16(c[0], c[1], c[2], c[3], l0, l1, l2, l3, b[n].x, b[n].y);
            MmaF16(c[0], c[1], c[2], c[3], h0, h1, h2, h3, b[n].z, b[n].w);
          }
        }
      }
      __syncwarp();
      // Channels 16 block + 8 n + 2 q + {0, 1}: chunk 4 block + 2 n + q / 2, half q % 2 of it.
#pragma unroll
      for (int mt = 0; mt < 2; ++mt) {
#pragma unroll
        for (int n = 0; n < 2; ++n) {
#pragma unroll
          for (int half_row = 0; half_row < 2; ++half_row) {
            const int token = first + 16 * mt + g + 8 * half_row;
            uint2* at = reinterpret_cast<uint2*>(Chunk(s, token, 4 * block + 2 * n + q / 2)) + q % 2;
            const uint2 r = *at;
            *at = make_uint2(__float_as_uint(Joined(r.x) + acc[mt][n][2 * half_row]), __float_as_uint(Joined(r.y) + acc[mt][n][2 * half_row + 1]));
          }
        }
      }
      __syncwarp();
    }
  }

  // ---- 4. Returns the gain. Leaves in each chunk: levels as two f16 pairs, the codes of its four channels in the bytes of a word.
  __device__ static float Codes(const uint8_t* metric, float scale, Shared& s) {
    const int lane = threadIdx.x & 31, token = threadIdx.x;
    float numerator = 0, denominator = 0;
#pragma unroll 1
    for (int block = 0; block < kBlocks; ++block) {
      float v[16], b[16];
      if (metric && block > 0) FeedBack(metric, block, s);
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const uint4 w = *Chunk(s, token, 4 * block + k);
        const uint32_t words[4] = {w.x, w.y, w.z, w.w};
        const float4 fed = *reinterpret_cast<const float4*>(&s.scratch[token / 32][lane][4 * (k ^ (lane & 3))]);
        const float feds[4] = {fed.x, fed.y, fed.z, fed.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          v[4 * k + e] = metric ? __uint_as_float(words[e]) : Joined(words[e]);
          b[4 * k + e] = metric && block > 0 ? feds[e] : 0.f;
        }
      }
      const float* within = metric ? reinterpret_cast<const float*>(metric + Metric::kWithin) + block * 256 : nullptr;
      const float* pivots = metric ? reinterpret_cast<const float*>(metric + Metric::kPivots) + block * 16 : nullptr;
      constexpr uint32_t kNoCodes = 0u - kCodeMagicBits * 0x01010101u;  // what 4 biased codes, one a byte, add up to besides
      uint32_t codes[4] = {kNoCodes, kNoCodes, kNoCodes, kNoCodes}, levels[8];
      float even_level = 0;
#pragma unroll
      for (int c = 0; c < 16; ++c) {
        // (v - b + 3/2) / 3; what depends on the channel before is as short as it can be.
        const float biased = fmaf(SaturatedMultiplyAdd(b[c], -1.f / 3, fmaf(v[c], 1.f / 3, 0.5f)), 3.f, kCodeMagic);
        const float level = (biased - kCodeMagic) - 1.5f;
        const float weighted = metric ? v[c] * __ldg(pivots + c) : v[c];
        numerator = fmaf(weighted, v[c], numerator);
        denominator = fmaf(weighted, level + b[c], denominator);
        codes[c / 4] += __float_as_uint(biased) << (8 * (c % 4));
        if (c % 2 == 0) {
          even_level = level;
        } else {
          levels[c / 2] = PackF16(even_level, level);
        }
        if (metric) {
#pragma unroll
          for (int k = c / 4; k < 4; ++k) {
            const float4 w = __ldg(reinterpret_cast<const float4*>(within + c * 16 + 4 * k));  // 0 up to channel c
            b[4 * k] = fmaf(w.x, level, b[4 * k]);
            b[4 * k + 1] = fmaf(w.y, level, b[4 * k + 1]);
            b[4 * k + 2] = fmaf(w.z, level, b[4 * k + 2]);
            b[4 * k + 3] = fmaf(w.w, level, b[4 * k + 3]);
          }
        }
      }
#pragma unroll
      for (int k = 0; k < 4; ++k)
        *Chunk(s, token, 4 * block + k) = make_uint4(levels[2 * k], levels[2 * k + 1], scale > 0 ? codes[k] : 0, 0);
      __syncwarp();
    }
    constexpr float kLeastGain = 0.7f, kMostGain = 1.6f;
    return denominator > 0 ? fminf(fmaxf(__fdiv_rn(numerator, denominator), kLeastGain), kMostGain) : 1.f;
  }

  /// scratch = levels of the blocks before `block` times W.
  __device__ static void FeedBack(const uint8_t* metric, int block, Shared& s) {
    const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
    const int warp = threadIdx.x / 32, first = 32 * warp;
    float acc[2][2][4] = {};
    uint4 next[2] = {Fragment(metric, 0, 2 * block), Fragment(metric, 0, 2 * block + 1)};
#pragma unroll 1
    for (int kt = 0; kt < block; ++kt) {
      const uint4 b[2] = {next[0], next[1]};
      const int later = min(kt + 1, block - 1);
      next[0] = Fragment(metric, later, 2 * block);
      next[1] = Fragment(metric, later, 2 * block + 1);
#pragma unroll
      for (int mt = 0; mt < 2; ++mt) {
        const uint2 top = *reinterpret_cast<const uint2*>(Chunk(s, first + 16 * mt + g, 4 * kt + q));
        const uint2 bottom = *reinterpret_cast<const uint2*>(Chunk(s, first + 16 * mt + g + 8, 4 * kt + q));
#pragma unroll
        for (int n = 0; n < 2; ++n) {
          float(&c)[4] = acc[mt][n];
          MmaF16(c[0], c[1], c[2], c[3], top.x, bottom.x, top.y, bottom.y, b[n].x, b[n].y);
          MmaF16(c[0], c[1], c[2], c[3], top.x, bottom.x, top.y, bottom.y, b[n].z, b[n].w);
        }
      }
    }
    // Channel 8 n + 2 q + {0, 1} of the block: float4 2 n + q / 2, half q % 2; float4 k of a token lies at k ^ (token & 3).
#pragma unroll
    for (int mt = 0; mt < 2; ++mt) {
#pragma unroll
      for (int n = 0; n < 2; ++n) {
#pragma unroll
        for (int half_row = 0; half_row < 2; ++half_row) {
          const int token = 16 * mt + g + 8 * half_row;
          float2* at = reinterpret_cast<float2*>(&s.scratch[warp][token][4 * ((2 * n + q / 2) ^ (token & 3))]) + q % 2;
          *at = make_float2(acc[mt][n][2 * half_row], acc[mt][n][2 * half_row + 1]);
        }
      }
    }
    __syncwarp();
  }

  // ---- 5
  __device__ static void Store(Shared& s, uint8_t* out) {
    const int tid = threadIdx.x;
    float largest = s.scale[tid];
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    if ((tid & 31) == 0) s.reduce[tid / 32] = largest;

    uint32_t* words = reinterpret_cast<uint32_t*>(out + Page::kKeyCodes);
    for (int w = tid; w < kTokens * kDim / 16; w += kThreads) {
      const int r = w % 4, lane = w / 4 % 32, tg = w / 128 % 2, kt = w / 256;
      const int token = 64 * tg + (lane >> 2) + 8 * (r & 1), chunk = 8 * kt + 4 * (r >> 1) + (lane & 3);
      uint32_t word = 0;
#pragma unroll
      for (int j = 0; j < 4; ++j) word |= Chunk(s, token + 16 * j, chunk)->z << (2 * j);
      words[w] = word;
    }
    for (int w = tid; w < kDim / 2; w += kThreads) {
      uint32_t word = 0;
      for (int e = 0; e < 4; ++e) {
        const int mean = s.stored_mean[w / 16 * 32 + 16 * (w % 4 / 2) + w / 4 % 4 * 4 + e];
        const int high = mean >> 8;
        const int byte = w % 2 == 0 ? high : mean - 256 * high - 128;
        word |= static_cast<uint32_t>(byte & 255) << (8 * e);
      }
      reinterpret_cast<uint32_t*>(out + Page::kMean)[w] = word;
    }
    __syncthreads();
    largest = fmaxf(fmaxf(s.reduce[0], s.reduce[1]), fmaxf(s.reduce[2], s.reduce[3]));
    const float base = largest > 0 ? ldexpf(1.f, ilogbf(largest)) : 0.f;
    const uint8_t stored = DeviceEncodeE3M5(s.scale[tid], base);
    out[Page::kTokenScale + (tid % 8) * 16 + 2 * (tid / 16) + (tid % 16) / 8] = stored;  // VectorPosition
    const int any_zero = __syncthreads_or(stored == 0);
    if (tid == 0) {
      *reinterpret_cast<uint4*>(out + Page::kHeader) = make_uint4(__float_as_uint(base), __float_as_uint(s.reduce[4]), any_zero, 0);
    }
    for (int at = Page::kHeader + 16 + 4 * tid; at < Page::kBytes; at += 4 * kThreads) *reinterpret_cast<uint32_t*>(out + at) = 0;
  }
};

}  // namespace kvrazor::cuda
