// Seals one head and side of a page with the affine codec (formulas: backends/cpu/seal_affine.cc). 256 threads, 16 tokens a warp. D = 128:
//
//   rotation  the four lowest channel bits by mma: rows of 16 tokens times H_16 of +-1, products exact, f32 sums; the other three bits are
//             additions in registers. Lane 4 g + q then holds rows g and g + 8 and channels 16 b + 8 h + 2 q + n: value 4 b + 2 h + n.
//             Not rotated: the identity instead of H_16
//   keys      warp w: rows are tokens 16 w + ..; a group's ranges run over rows: a shuffle, then shared memory. Two warps make a word of codes
//   values    warp w: tokens so that row g + 8 is the token after row g's; a group's ranges run over the four lanes q
//
// These lanes are those of the page's words (packed_page.h), so codes go where they belong without another exchange. Bytes of a head: 2 x 32 KB
// read once (token norms: through the cluster's shared memory), 12.5 KB written, coalesced from shared memory.
#pragma once

#include <cooperative_groups.h>

#include "src/backends/cuda/ptx.cuh"
#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

/// What codes of a group are computed from: code = rne(3 clamp((x - base) * inverse + shift, 0, 1)).
struct GroupCoder {
  float base, inverse, shift;  // the latter two: a third of what their names say
  uint16_t scale, offset;  // stored
};

/// low may be NaN: no token of the group counts.
__device__ __forceinline__ GroupCoder MakeGroupCoder(bool float_min, float low, float high) {
  if (!(low <= high)) low = high = 0;
  // (high - low) / 3, rounded to nearest: the remainder of the first guess puts it right.
  constexpr float kThird = 1.f / 3;
  const float range = high - low, guess = range * kThird;
  const float s = fmaf(fmaf(-3.f, guess, range), kThird, guess);
  GroupCoder c{low, 0.f, 0.f, SaturatedF16(s), 0};
  float offset = low;
  if (c.scale != 0) {
    if (float_min) {
      c.base = FromF16(SaturatedF16(low));
      c.inverse = kThird * Reciprocal(FromF16(c.scale));
    } else {
      const float reciprocal = Reciprocal(s);
      const float z = rintf(-low * reciprocal);
      c.inverse = kThird * reciprocal;
      c.shift = fmaf(z, s, low) * c.inverse;
      offset = __fmul_rn(-z, s);
    }
  }
  c.offset = SaturatedF16(offset + 0.f);
  return c;
}

template <int kDim>
struct AffineSeal {
  using Page = AffinePage<kDim>;
  static constexpr int kThreads = 256;
  static constexpr int kBlocks = kDim / 16;   // of 16 channels
  static constexpr int kQuads = kDim / 64;
  static constexpr int kParts = kDim / 32;    // groups of 32 channels
  static constexpr int kValues = kDim / 4;    // of a thread and token
  static constexpr int kRowStride = kDim + 16;
  static constexpr int kCodeWords = kTokens * kDim / 16;
  static constexpr int kParamWords = 16 * kDim / 4;

  struct Shared {
    float low[32][kRowStride];  // [4 tokens][Position]
    float high[32][kRowStride];
    float base[4][kDim];        // [32 tokens][CoderPosition]
    float inverse[4][kDim];
    float shift[4][kDim];
    uint32_t codes[2][kCodeWords];  // keys: bytes 0 and 2 of words, one of two warps each; values: [0] only
    uint32_t params[kParamWords];
    float squares[kTokens];         // of this head
    float factor[kTokens];          // 1 / norm
  };

  __device__ static void Run(const SealParams& p, const SealJob& job, int head, int side, uint8_t* out, Shared& s) {
    if (side == 0) {
      Keys(p, job, head, out, s);
    } else {
      Values(p, job, head, out, s);
    }
  }

 private:
  static_assert(Page::kKeyScale == Page::kKeyCodes + 4 * kCodeWords && Page::kValueScale == Page::kValueCodes + 4 * kCodeWords);

  __device__ static int Lane() { return static_cast<int>(threadIdx.x & 31); }
  __device__ static int Warp() { return static_cast<int>(threadIdx.x / 32); }
  /// Channel of value k of the lanes q.
  __device__ static int ChannelOf(int k, int q) { return 16 * (k / 4) + 8 * (k / 2 % 2) + 2 * q + k % 2; }

  /// Two rows: four channels of each block a lane.
  __device__ static void Load(const RowSource& rows, const int (&token)[2], uint2 (&raw)[2][kBlocks]) {
    const int q = Lane() & 3;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) raw[r][b] = rows.HalfChunk(token[r], 2 * b + q / 2, q % 2);
    }
    half2 check = __float2half2_rn(0.f);
#pragma unroll
    for (int b = 0; b < kBlocks; ++b) check = CheckFinite(make_uint4(raw[0][b].x, raw[0][b].y, raw[1][b].x, raw[1][b].y), check);
    if (!IsClean(check)) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
#pragma unroll
        for (int b = 0; b < kBlocks; ++b) raw[r][b] = make_uint2(FiniteOrZero(raw[r][b].x), FiniteOrZero(raw[r][b].y));
      }
    }
  }

  /// Entry (channel, column) of H_16 or of the identity, as f16.
  __device__ static uint32_t Entry(bool rotate, int channel, int column) {
    constexpr uint32_t kOne = 0x3c00, kSign = 0x8000;
    if (!rotate) return channel == column ? kOne : 0;
    return kOne | ((__popc(channel & column) & 1) ? kSign : 0);
  }

  /// x <- H x without the factor 1 / sqrt(D), or x.
  __device__ static void Rotate(bool rotate, const uint2 (&raw)[2][kBlocks], float (&x)[2][kValues]) {
    const int g = Lane() >> 2, q = Lane() & 3;
    uint2 b[2];
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int column = 8 * h + g;
      b[h] = make_uint2(Entry(rotate, 4 * q, column) | Entry(rotate, 4 * q + 1, column) << 16,
                        Entry(rotate, 4 * q + 2, column) | Entry(rotate, 4 * q + 3, column) << 16);
    }
#pragma unroll
    for (int block = 0; block < kBlocks; ++block) {
#pragma unroll
      for (int h = 0; h < 2; ++h) {
        float c[4] = {};
        MmaF16(c[0], c[1], c[2], c[3], raw[0][block].x, raw[1][block].x, raw[0][block].y, raw[1][block].y, b[h].x, b[h].y);
        x[0][4 * block + 2 * h] = c[0];
        x[0][4 * block + 2 * h + 1] = c[1];
        x[1][4 * block + 2 * h] = c[2];
        x[1][4 * block + 2 * h + 1] = c[3];
      }
    }
    if (!rotate) return;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      RegisterStage<4>(x[r]);
      RegisterStage<8>(x[r]);
      if constexpr (kDim == 128) RegisterStage<16>(x[r]);
    }
  }

  // ---- keys
  __device__ static void Keys(const SealParams& p, const SealJob& job, int head, uint8_t* out, Shared& s) {
    const int g = Lane() >> 2;
    const int token[2] = {16 * Warp() + g, 16 * Warp() + g + 8};
    uint2 raw[2][kBlocks];
    Load(MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, 0), token, raw);
    if (p.token_scale && p.norms_in_cluster) AddSquares(raw, token, s);
    float x[2][kValues];
    Rotate(p.rotate, raw, x);
    if (p.token_scale) TokenFactors(p, job, head, out, s);
    const float rotation = RotationFactor<kDim>(p.rotate);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // NaN takes no part in a minimum or maximum.
      const float counts = IsExact(job, token[r]) ? __uint_as_float(0x7fc00000u) : rotation;
      const float factor = p.token_scale ? s.factor[token[r]] * counts : counts;
#pragma unroll
      for (int k = 0; k < kValues; ++k) x[r][k] *= factor;
    }
    const bool exact[2] = {IsExact(job, token[0]), IsExact(job, token[1])};
    KeyRanges(x, s);
    __syncthreads();
    KeyParameters(p, s);
    __syncthreads();
    KeyCodes(exact, x, s);
    __syncthreads();
    uint4* to = reinterpret_cast<uint4*>(out + Page::kKeyCodes);
    for (int i = threadIdx.x; i < kCodeWords / 4; i += kThreads) {
      const uint4 even = reinterpret_cast<const uint4*>(s.codes[0])[i], odd = reinterpret_cast<const uint4*>(s.codes[1])[i];
      to[i] = make_uint4(even.x | odd.x << 8, even.y | odd.y << 8, even.z | odd.z << 8, even.w | odd.w << 8);
    }
    CopyParams(s, out + Page::kKeyScale);
    if (!p.token_scale) {
      for (int w = threadIdx.x; w < kTokens / 2; w += kThreads) reinterpret_cast<uint32_t*>(out + Page::kTokenNorm)[w] = 0x3c003c00u;  // 1
    }
    // No CTA may leave, or write its sums again, before the others have read them; and its own page must have left shared memory.
    if (p.token_scale && p.norms_in_cluster) cooperative_groups::this_cluster().barrier_wait();
    __syncthreads();
  }

  /// Norms over all kv heads: each CTA of the cluster adds up its head, then all add the heads in the same order.
  __device__ static void AddSquares(const uint2 (&raw)[2][kBlocks], const int (&token)[2], Shared& s) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float sum = 0;
#pragma unroll
      for (int b = 0; b < kBlocks; ++b) sum = SumOfSquares(raw[r][b].y, SumOfSquares(raw[r][b].x, sum));
      sum += __shfl_xor_sync(~0u, sum, 1);
      sum += __shfl_xor_sync(~0u, sum, 2);
      if ((Lane() & 3) == 0) s.squares[token[r]] = sum;
    }
    cooperative_groups::this_cluster().barrier_arrive();
  }

  __device__ static void TokenFactors(const SealParams& p, const SealJob& job, int head, uint8_t* out, Shared& s) {
    const auto cluster = cooperative_groups::this_cluster();
    if (p.norms_in_cluster) cluster.barrier_wait();
    if (threadIdx.x < kTokens) {
      const int t = threadIdx.x;
      float sum = 0;
      if (p.norms_in_cluster) {
        for (int h = 0; h < p.num_kv_heads; ++h) sum += cluster.map_shared_rank(s.squares, h)[t];
      } else {
        for (int h = 0; h < p.num_kv_heads; ++h) {
          const RowSource rows = MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, h, 0);
          for (int chunk = 0; chunk < kDim / 8; ++chunk) {
            uint4 v = rows.Chunk(t, chunk);
            MakeFinite(v);
            sum = SumOfSquares(v.w, SumOfSquares(v.z, SumOfSquares(v.y, SumOfSquares(v.x, sum))));
          }
        }
      }
      const uint16_t norm = IsExact(job, t) ? 0 : SaturatedF16(sqrtf(sum));
      const uint16_t stored = norm != 0 ? norm : 0x3c00;  // 1
      s.factor[t] = __fdiv_rn(1.f, FromF16(stored));
      const int at = (t % 8) * 16 + 2 * (t / 16) + (t % 16) / 8;  // VectorPosition
      reinterpret_cast<uint16_t*>(out + Page::kTokenNorm)[at] = stored;
    }
    if (p.norms_in_cluster) cluster.barrier_arrive();
    __syncthreads();
  }

  /// After a shuffle a lane has half of its values, k = 4 f + e + kValues / 2 (g / 4), over 4 tokens: float4 f of slot 4 (g / 4) + q.
  __device__ static int Position(int f, int slot) { return (f * 8 + slot) * 4; }
  __device__ static int ValueAt(int position) { return position / 32 * 4 + position % 4 + (position / 16 % 2) * (kValues / 2); }
  __device__ static int LaneAt(int position) { return position / 4 % 4; }
  /// Where all lanes q find the coders of values 4 f .. : a float4 each.
  __device__ static int CoderPosition(int f, int q) { return (f * 4 + q) * 4; }

  __device__ static void KeyRanges(const float (&x)[2][kValues], Shared& s) {
    const int g = Lane() >> 2, q = Lane() & 3, row = 4 * Warp() + (g & 3), slot = 4 * (g / 4) + q;
    const bool upper = g >= 4;
    const auto low_of = [&](int k) { return fminf(x[0][k], x[1][k]); };
    const auto high_of = [&](int k) { return fmaxf(x[0][k], x[1][k]); };
#pragma unroll
    for (int f = 0; f < kValues / 8; ++f) {
      float low[4], high[4];
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int k = 4 * f + e;
        const float low_a = low_of(k), low_b = low_of(k + kValues / 2), high_a = high_of(k), high_b = high_of(k + kValues / 2);
        low[e] = fminf(upper ? low_b : low_a, __shfl_xor_sync(~0u, upper ? low_a : low_b, 16));
        high[e] = fmaxf(upper ? high_b : high_a, __shfl_xor_sync(~0u, upper ? high_a : high_b, 16));
      }
      *reinterpret_cast<float4*>(&s.low[row][Position(f, slot)]) = make_float4(low[0], low[1], low[2], low[3]);
      *reinterpret_cast<float4*>(&s.high[row][Position(f, slot)]) = make_float4(high[0], high[1], high[2], high[3]);
    }
  }

  __device__ static void KeyParameters(const SealParams& p, Shared& s) {
    const int group_rows = p.key_group_size / 4;  // a row is 4 tokens
    for (int i = threadIdx.x; i < 4 * kDim; i += kThreads) {
      const int part = i / kDim, position = i % kDim, k = ValueAt(position), q = LaneAt(position), channel = ChannelOf(k, q);
      const int first = part * 8 / group_rows * group_rows;
      float low = s.low[first][position], high = s.high[first][position];
#pragma unroll 4
      for (int row = first + 1; row < first + group_rows; ++row) {
        low = fminf(low, s.low[row][position]);
        high = fmaxf(high, s.high[row][position]);
      }
      const GroupCoder c = MakeGroupCoder(p.key_float_min, low, high);
      const int coder = CoderPosition(k / 4, q) + k % 4;
      s.base[part][coder] = c.base;
      s.inverse[part][coder] = c.inverse;
      s.shift[part][coder] = c.shift;
      uint16_t* params = reinterpret_cast<uint16_t*>(s.params);
      const int even = channel - channel % 2;
      params[(Page::KeyScaleByte(part, even) - Page::kKeyScale) / 2 + channel % 2] = c.scale;
      params[(Page::KeyOffsetByte(part, even) - Page::kKeyScale) / 2 + channel % 2] = c.offset;
    }
  }

  __device__ static void KeyCodes(const bool (&exact)[2], const float (&x)[2][kValues], Shared& s) {
    const int g = Lane() >> 2, q = Lane() & 3, part = Warp() / 2;
    const uint32_t keep = (exact[0] ? 0 : 0x00330033u) | (exact[1] ? 0 : 0x00cc00ccu);
    constexpr uint32_t kNoCodes = 0u - kCodeMagicBits * 0x00550055u;  // what 8 biased codes, in the low bytes of both halves, add up to besides
    uint4* to = reinterpret_cast<uint4*>(s.codes[Warp() % 2]);
#pragma unroll
    for (int quad = 0; quad < kQuads; ++quad) {
      uint32_t words[4] = {kNoCodes, kNoCodes, kNoCodes, kNoCodes};
#pragma unroll
      for (int b = 4 * quad; b < 4 * quad + 4; ++b) {
        const float4 base = *reinterpret_cast<const float4*>(&s.base[part][CoderPosition(b, q)]);
        const float4 inverse = *reinterpret_cast<const float4*>(&s.inverse[part][CoderPosition(b, q)]);
        const float4 shift = *reinterpret_cast<const float4*>(&s.shift[part][CoderPosition(b, q)]);
        const float bases[4] = {base.x, base.y, base.z, base.w}, inverses[4] = {inverse.x, inverse.y, inverse.z, inverse.w},
                    shifts[4] = {shift.x, shift.y, shift.z, shift.w};
#pragma unroll
        for (int e = 0; e < 4; ++e) {  // channels 16 b + 8 (e / 2) + 2 q + e % 2
#pragma unroll
          for (int r = 0; r < 2; ++r) {
            const uint32_t code = BiasedCode(SaturatedMultiplyAdd(x[r][4 * b + e] - bases[e], inverses[e], shifts[e]));
            words[2 * (b / 2 % 2) + e / 2] += code << (4 * (b % 2) + 2 * r + 16 * (e % 2));
          }
        }
      }
      to[(part * kQuads + quad) * 32 + 4 * g + q] = make_uint4(words[0] & keep, words[1] & keep, words[2] & keep, words[3] & keep);
    }
  }

  // ---- values
  __device__ static void Values(const SealParams& p, const SealJob& job, int head, uint8_t* out, Shared& s) {
    const int g = Lane() >> 2, q = Lane() & 3, warp = Warp();
    const int eight = warp & 1, i = 2 * (warp >> 1 & 1) + eight, quad = warp >> 2, odd = g >> 2, pair = g & 3;
    const int first = 64 * quad + 32 * (i / 2) + 16 * odd + 8 * eight + 2 * pair;
    const int token[2] = {first, first + 1};
    uint2 raw[2][kBlocks];
    Load(MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, 1), token, raw);
    float x[2][kValues];
    Rotate(p.rotate, raw, x);

    // Of the lanes q each takes one part of 32 channels (D = 64: two lanes the same).
    constexpr int kLanesPerPart = 4 / kParts;
    const int part = q / kLanesPerPart;
    const float rotation = RotationFactor<kDim>(p.rotate);
    GroupCoder coder[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float low[kParts], high[kParts];
#pragma unroll
      for (int k = 0; k < kValues; ++k) {
        x[r][k] *= rotation;
        low[k / 8] = k % 8 == 0 ? x[r][k] : fminf(low[k / 8], x[r][k]);
        high[k / 8] = k % 8 == 0 ? x[r][k] : fmaxf(high[k / 8], x[r][k]);
      }
      coder[r] = ValueCoder(p, low, high);
      if (IsExact(job, token[r])) coder[r].scale = coder[r].offset = 0;
    }
    if (q % kLanesPerPart == 0) {
      s.params[(Page::ValueScaleByte(part, first) - Page::kValueScale) / 4] = coder[0].scale | static_cast<uint32_t>(coder[1].scale) << 16;
      s.params[(Page::ValueOffsetByte(part, first) - Page::kValueScale) / 4] = coder[0].offset | static_cast<uint32_t>(coder[1].offset) << 16;
    }

    constexpr uint32_t kNoCodes = 0u - kCodeMagicBits * 0x05050505u;  // 8 biased codes, two in the low half of each byte
    const uint32_t keep = (IsExact(job, token[0]) ? 0 : 0x0000ffffu) | (IsExact(job, token[1]) ? 0 : 0xffff0000u);
    uint32_t half_words[2 * kParts];  // [part][channel % 2]
#pragma unroll
    for (int at = 0; at < kParts; ++at) {
      const int from = (Lane() & ~3) + at * kLanesPerPart;
      uint32_t words[2] = {kNoCodes, kNoCodes};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float base = __shfl_sync(~0u, coder[r].base, from), inverse = __shfl_sync(~0u, coder[r].inverse, from),
                    shift = __shfl_sync(~0u, coder[r].shift, from);
#pragma unroll
        for (int e = 0; e < 8; ++e) {  // block 2 at + e / 4, channel bit 3: e / 2 % 2
          const uint32_t code = BiasedCode(SaturatedMultiplyAdd(x[r][8 * at + e] - base, inverse, shift));
          words[e % 2] += code << (8 * (e / 4) + 2 * (e / 2 % 2) + 16 * r);
        }
      }
      half_words[2 * at] = (words[0] & keep) << (4 * odd);
      half_words[2 * at + 1] = (words[1] & keep) << (4 * odd);
    }
    // The lane with the other value of `odd` has the other half of each word: each completes half of the words.
#pragma unroll
    for (int n = 0; n < kParts; ++n) {
      const uint32_t other = __shfl_xor_sync(~0u, odd ? half_words[n] : half_words[n + kParts], 16);
      const uint32_t word = other | (odd ? half_words[n + kParts] : half_words[n]);
      const int at = (odd ? n + kParts : n) / 2, next = n % 2;  // kParts is even
      s.codes[0][((at * 2 + quad) * 32 + 4 * (2 * q + next) + pair) * 4 + i] = word;
    }
    __syncthreads();
    for (int w = threadIdx.x; w < kCodeWords / 4; w += kThreads)
      reinterpret_cast<uint4*>(out + Page::kValueCodes)[w] = reinterpret_cast<const uint4*>(s.codes[0])[w];
    CopyParams(s, out + Page::kValueScale);
    __syncthreads();
  }

  /// The coder of the lane's part from the ranges of all parts over the lane's channels.
  __device__ static GroupCoder ValueCoder(const SealParams& p, const float (&low)[kParts], const float (&high)[kParts]) {
    const int q = Lane() & 3;
    const bool upper = q & 2, odd = q & 1;
    float mn, mx;
    if constexpr (kParts == 4) {
      float mns[2], mxs[2];
#pragma unroll
      for (int n = 0; n < 2; ++n) {
        mns[n] = fminf(upper ? low[n + 2] : low[n], __shfl_xor_sync(~0u, upper ? low[n] : low[n + 2], 2));
        mxs[n] = fmaxf(upper ? high[n + 2] : high[n], __shfl_xor_sync(~0u, upper ? high[n] : high[n + 2], 2));
      }
      mn = fminf(odd ? mns[1] : mns[0], __shfl_xor_sync(~0u, odd ? mns[0] : mns[1], 1));
      mx = fmaxf(odd ? mxs[1] : mxs[0], __shfl_xor_sync(~0u, odd ? mxs[0] : mxs[1], 1));
    } else {
      mn = fminf(upper ? low[1] : low[0], __shfl_xor_sync(~0u, upper ? low[0] : low[1], 2));
      mx = fmaxf(upper ? high[1] : high[0], __shfl_xor_sync(~0u, upper ? high[0] : high[1], 2));
      mn = fminf(mn, __shfl_xor_sync(~0u, mn, 1));
      mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, 1));
    }
    constexpr int kNextPart = 4 / kParts;  // lanes to the neighbouring part
    for (int mask = kNextPart; mask < kNextPart * p.value_group_size / 32; mask *= 2) {
      mn = fminf(mn, __shfl_xor_sync(~0u, mn, mask));
      mx = fmaxf(mx, __shfl_xor_sync(~0u, mx, mask));
    }
    return MakeGroupCoder(p.value_float_min, mn, mx);
  }

  __device__ static void CopyParams(const Shared& s, uint8_t* to) {
    for (int i = threadIdx.x; i < kParamWords / 4; i += kThreads) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(s.params)[i];
  }
};

}  // namespace kvrazor::cuda
