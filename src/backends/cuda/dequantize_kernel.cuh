// Packed pages to f16 rows. A CTA takes one head and side of a page, 2 D threads, 64 values each; the inverse rotation is the one of
// sealing (seal_rows.cuh). D = 128: 9 or 12.5 KB read, 64 KB written.
//
//   keys    thread (row 0..31, j 0..7): 4 tokens, chunks x and x + 2 of each: four whole words of codes
//   values  thread (pair 0..63, part 0..3): 2 tokens, 32 channels. Affine: half of eight words; razor: two bytes of eight words
#pragma once

#include "src/backends/cuda/dequantize_rows.cuh"
#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/page_words.h"
#include "src/backends/cuda/small_floats.cuh"

namespace kvrazor::cuda {

template <int kBits>
__device__ __forceinline__ float CodeAt(uint32_t word, int bit) {
  return static_cast<float>((word >> bit) & ((1u << kBits) - 1));
}

/// The page of a form: one of packed_page.h. Form::kForm is a PageForm (nvcc takes no class as a kernel's template argument).
template <class Form>
struct FormPage {
  static constexpr PageForm kForm = Form::kForm;
  static constexpr bool kRazor = kForm.kind == PageKind::kRazor;
  static constexpr int kKeyBits = kForm.key_bits, kValueBits = kForm.value_bits;
  using Razor = RazorPage<kForm.head_dim, kRazor ? kKeyBits : 2, kForm.rank_one_mean, kForm.value_groups>;
  using Affine = AffinePage<kForm.head_dim, kRazor ? 2 : kKeyBits, kValueBits>;
};

/// Token `m` of a thread's row of keys, in the order of the format.
template <bool kRazor>
__device__ __forceinline__ int KeyToken(int row, int m) {
  return kRazor ? 64 * (row / 16) + 16 * m + row % 16 : 32 * (row / 8) + 8 * m + row % 8;
}

/// Codes of razor's keys: four channels (bytes) of the tokens 64 tg + 16 m + .., from the words of a (32 channels, lane, r).
template <int kBits>
__device__ __forceinline__ uint32_t RazorCodes(const uint32_t* words, int tg, int m) {
  if constexpr (kBits == 2) return words[128 * tg] >> (2 * m) & 0x03030303u;
  const int i = 4 * tg + m;
  if (i < 6) return words[128 * (i / 2)] >> (3 * (i % 2)) & 0x07070707u;
  // The last two lie in the rests of the three words (packed_page.h).
  return (words[128] >> i & 0x01010101u) | (words[i == 6 ? 0 : 256] >> 6 & 0x03030303u) << 1;
}

template <class Form, bool kRazor, int kDim>
__device__ void DecodeKeys(const uint8_t* page, int row, int chunk, float (&x)[4][16]) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(page);
  constexpr int kBits = FormPage<Form>::kKeyBits;
  if constexpr (kRazor) {
    using Page = typename FormPage<Form>::Razor;
    constexpr float kMiddle = 0.5f * ((1 << kBits) - 1);
    const float base = *reinterpret_cast<const float*>(page + Page::kHeader);
    const float mean_scale = *reinterpret_cast<const float*>(page + Page::kHeader + 4);
    float scale[4];
#pragma unroll
    for (int m = 0; m < 4; ++m) scale[m] = DeviceDecodeE3M5(page[Page::kTokenScale + VectorPosition(KeyToken<true>(row, m), kTokens)], base);
    float factor[4] = {1, 1, 1, 1};  // of the mean
    if constexpr (Form::kForm.rank_one_mean) {
#pragma unroll
      for (int m = 0; m < 4; ++m)
        factor[m] = FromF16(*reinterpret_cast<const uint16_t*>(page + Page::kMeanFactor + 2 * VectorPosition(KeyToken<true>(row, m), kTokens)));
    }
    const int tg = row / 16, r0 = row / 8 % 2, g = row % 8;
#pragma unroll
    for (int c = 0; c < 2; ++c) {
      const int at = chunk + 2 * c, kt = at / 4, r = r0 + 2 * (at / 2 % 2);
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int q = 2 * (at % 2) + half;
        const uint32_t* unit = words + Page::kKeyCodes / 4 + kt * kBits * 128 + (4 * g + q) * 4 + r;
        uint32_t codes[4];
#pragma unroll
        for (int m = 0; m < 4; ++m) codes[m] = RazorCodes<kBits>(unit, tg, m);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int from = RazorWords<kDim, kBits, Form::kForm.rank_one_mean, Form::kForm.value_groups>::MeanByte(8 * at + 4 * half + e);
          const int steps = 256 * static_cast<int8_t>(page[from]) + 128 + static_cast<int8_t>(page[from + 4]);
          const float mean = static_cast<float>(steps) * mean_scale;
#pragma unroll
          for (int m = 0; m < 4; ++m) x[m][8 * c + 4 * half + e] = fmaf(scale[m], CodeAt<kBits>(codes[m], 8 * e) - kMiddle, factor[m] * mean);
        }
      }
    }
  } else {
    using Page = typename FormPage<Form>::Affine;
    const int part = row / 8, g = row % 8;
    float norm[4];
#pragma unroll
    for (int m = 0; m < 4; ++m)
      norm[m] = FromF16(*reinterpret_cast<const uint16_t*>(page + Page::kTokenNorm + 2 * VectorPosition(KeyToken<false>(row, m), kTokens)));
    const int quad = chunk / 8, i = 2 * (chunk / 4 % 2) + chunk % 2;
#pragma unroll
    for (int q = 0; q < 4; ++q) {
      // 2 bits: fields 4 t + 2 odd + high; 4 bits: 2 odd + high, a word for each t.
      uint32_t word[2];
#pragma unroll
      for (int t = 0; t < 2; ++t)
        word[t] = words[Page::kKeyCodes / 4 + (((part * (kDim / 64) + quad) * (kBits / 2) + (kBits == 4 ? t : 0)) * 32 + 4 * g + q) * 4 + i];
#pragma unroll
      for (int c = 0; c < 2; ++c) {
        const int at = chunk + 2 * c;
        const float2 scale = __half22float2(AsHalf2(words[Page::KeyScaleByte(part, 8 * at + 2 * q) / 4]));
        const float2 offset = __half22float2(AsHalf2(words[Page::KeyOffsetByte(part, 8 * at + 2 * q) / 4]));
#pragma unroll
        for (int m = 0; m < 4; ++m) {
          const int bit = kBits * ((kBits == 2 ? 4 * (m >> 1) : 0) + 2 * c + (m & 1));
          x[m][8 * c + 2 * q] = fmaf(scale.x, CodeAt<kBits>(word[m >> 1], bit), offset.x) * norm[m];
          x[m][8 * c + 2 * q + 1] = fmaf(scale.y, CodeAt<kBits>(word[m >> 1], bit + 16), offset.y) * norm[m];
        }
      }
    }
  }
}

/// A thread's 2 tokens and the channels of its 32 values: value i is channel ValueChannel(part, i).
template <bool kRazor>
__device__ __forceinline__ int ValueChunk(int part, int c) {
  return kRazor ? 8 * (part / 2) + part % 2 + 2 * c : 4 * part + c;
}
/// x <- H x: the channel bits that are not a thread's own are those of `part`.
template <bool kRazor, int kDim>
__device__ void RotateValues(float (&x)[32]) {
  if constexpr (kRazor) {
    RegisterStage<1>(x);
    RegisterStage<2>(x);
    RegisterStage<4>(x);
    LaneStage<1>(x);      // channel bit 3
    RegisterStage<8>(x);  // 4
    RegisterStage<16>(x); // 5
    if constexpr (kDim == 128) LaneStage<2>(x);
  } else {
    RotateRun32<kDim>(x);
  }
}

template <class Form, bool kRazor, int kDim>
__device__ void DecodeValues(const uint8_t* page, int part, int token, float (&x)[2][32]) {
  const uint32_t* words = reinterpret_cast<const uint32_t*>(page);
  constexpr int kBits = FormPage<Form>::kValueBits;
  if constexpr (kRazor) {
    using Page = typename FormPage<Form>::Razor;
    const int group = token / Page::kGroupTokens * kDim;  // its parameters
    float norm[2];
#pragma unroll
    for (int n = 0; n < 2; ++n) norm[n] = FromF16(static_cast<uint16_t>(page[Page::kNorm + VectorPosition(token + n, kTokens)] << 7));
    const int kt = token / 32, high = token / 16 % 2, eight = token / 8 % 2, q = token % 8 / 2, dg = part / 2, r0 = part % 2;
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      const uint32_t word = words[Page::kValueCodes / 4 + ((kt * (kDim / 64) + dg) * 32 + 4 * g + q) * 4 + r0 + 2 * high];
#pragma unroll
      for (int c = 0; c < 4; ++c) {
        const int at = group + VectorPosition(8 * ValueChunk<true>(part, c) + g, kDim);
        const float scale = FromF16(static_cast<uint16_t>(page[Page::kChannelScale + at] << 7));
        const float centre = static_cast<float>(static_cast<int8_t>(page[Page::kCentre + at] ^ 128u)) / 8;
#pragma unroll
        for (int n = 0; n < 2; ++n) x[n][8 * c + g] = norm[n] * (scale * (CodeAt<2>(word, 8 * (2 * n + eight) + 2 * c) - 1.5f + centre));
      }
    }
  } else {
    using Page = typename FormPage<Form>::Affine;
    const int quad = token / 64, i = 2 * (token / 32 % 2) + token / 8 % 2, odd = token / 16 % 2, q = token % 8 / 2;
    const float2 scale = __half22float2(AsHalf2(words[Page::ValueScaleByte(part, token) / 4]));
    const float2 offset = __half22float2(AsHalf2(words[Page::ValueOffsetByte(part, token) / 4]));
#pragma unroll
    for (int g = 0; g < 8; ++g) {
      uint32_t word[2];
#pragma unroll
      for (int t = 0; t < 2; ++t)
        word[t] = words[Page::kValueCodes / 4 + (((part * 2 + quad) * (kBits / 2) + (kBits == 4 ? t : 0)) * 32 + 4 * g + q) * 4 + i];
#pragma unroll
      for (int m = 0; m < 4; ++m) {
        const int bit = kBits * ((kBits == 2 ? 4 * (m >> 1) : 0) + 2 * odd + (m & 1));
        x[0][8 * m + g] = fmaf(scale.x, CodeAt<kBits>(word[m >> 1], bit), offset.x);
        x[1][8 * m + g] = fmaf(scale.y, CodeAt<kBits>(word[m >> 1], bit + 16), offset.y);
      }
    }
  }
}

template <class Form>
__global__ void __launch_bounds__(2 * Form::kForm.head_dim) DequantizeKernel(const DequantizeParams p) {
  constexpr int kDim = Form::kForm.head_dim;
  constexpr bool kRazor = FormPage<Form>::kRazor;
  const DequantizeJob job = p.jobs[blockIdx.y];
  if (job.source < 0) return;
  const int head = blockIdx.x, side = blockIdx.z, tid = threadIdx.x;
  const uint8_t* page = p.packed_pages + (int64_t{job.source} * p.num_kv_heads + head) * p.packed_head_bytes;
  const RowTarget out = MakeRowTarget<kDim>(p, job, head, side);
  const int exact = ExactTokens(p, job);
  const float rotation = RotationFactor<kDim>(p.rotate);
  if (side == 0) {
    constexpr int kLanes = kDim / 16;
    using Tile = RowTile<kDim>;
    const int j = tid % kLanes, row = tid / kLanes, chunk = Tile::Chunk(j);
    float x[4][16];
    DecodeKeys<Form, kRazor, kDim>(page, row, chunk, x);
#pragma unroll
    for (int m = 0; m < 4; ++m) {
      const int token = KeyToken<kRazor>(row, m);
#pragma unroll
      for (int i = 0; i < 16; ++i) x[m][i] *= rotation;
      if (p.rotate) Tile::Rotate(x[m]);
      if (token < exact) continue;
      *out.Chunk(token, chunk) = PackChunk(&x[m][0]);
      *out.Chunk(token, chunk + 2) = PackChunk(&x[m][8]);
    }
  } else {
    constexpr int kParts = kDim / 32;
    const int part = tid % kParts, token = 2 * (tid / kParts);
    float x[2][32];
    DecodeValues<Form, kRazor, kDim>(page, part, token, x);
#pragma unroll
    for (int n = 0; n < 2; ++n) {
#pragma unroll
      for (int i = 0; i < 32; ++i) x[n][i] *= rotation;
      if (p.rotate) RotateValues<kRazor, kDim>(x[n]);
      if (token + n < exact) continue;
#pragma unroll
      for (int c = 0; c < 4; ++c) *out.Chunk(token + n, ValueChunk<kRazor>(part, c)) = PackChunk(&x[n][8 * c]);
    }
  }
  CopySinkRows<kDim>(p, job, head, side, out);
}

}  // namespace kvrazor::cuda
