// Seals one head and side of a page with the affine codec (formulas: backends/cpu/seal_affine.cc). 256 threads, 16 tokens a warp. D = 128:
//
//   rotation  on tensor cores (seal_tile.cuh): lane 4 g + q then holds rows g and g + 8 and channels 16 b + 8 h + 2 q + n: value 4 b + 2 h + n
//   keys      warp w: rows are tokens 16 w + ..; a group's ranges run over rows: a shuffle, then shared memory. Two warps make a word of codes
//   values    warp w: tokens so that row g + 8 is the token after row g's; a group's ranges run over the four lanes q
//
// These lanes are those of the page's words (packed_page.h), so codes go where they belong without another exchange. Bytes of a head: 2 x 32 KB
// read once, a page ahead (token norms: sent to the other CTAs of the cluster), 12.5 KB written, coalesced from shared memory.
#pragma once

#include <cooperative_groups.h>

#include "src/backends/cuda/seal_tile.cuh"

namespace kvrazor::cuda {

/// What codes of a group are computed from: code = rne(L clamp((x - base) * inverse + shift, 0, 1)), L the largest code.
struct GroupCoder {
  float base, inverse, shift;  // the latter two: an L-th of what their names say
  uint16_t scale, offset;      // stored
};

/// low may be NaN: no token of the group counts.
template <int kBits>
__device__ __forceinline__ GroupCoder MakeGroupCoder(bool float_min, float low, float high) {
  if (!(low <= high)) low = high = 0;
  // (high - low) / L, rounded to nearest: the remainder of the first guess puts it right.
  constexpr float kMost = (1 << kBits) - 1, kPart = 1.f / kMost;
  const float range = high - low, guess = range * kPart;
  const float s = fmaf(fmaf(-kMost, guess, range), kPart, guess);
  GroupCoder c{low, 0.f, 0.f, SaturatedF16(s), 0};
  float offset = low;
  if (c.scale != 0) {
    if (float_min) {
      c.base = FromF16(SaturatedF16(low));
      c.inverse = kPart * Reciprocal(FromF16(c.scale));
    } else {
      const float reciprocal = Reciprocal(s);
      const float z = rintf(-low * reciprocal);
      c.inverse = kPart * reciprocal;
      c.shift = fmaf(z, s, low) * c.inverse;
      offset = __fmul_rn(-z, s);
    }
  }
  c.offset = SaturatedF16(offset + 0.f);
  return c;
}

template <int kDim, int kKeyBits, int kValueBits>
struct AffineSeal {
  using Page = AffinePage<kDim, kKeyBits, kValueBits>;
  static constexpr int kThreads = 256;
  using Tile = RowTile16<kDim>;
  static constexpr int kBlocks = Tile::kBlocks;
  static constexpr int kQuads = kDim / 64;
  static constexpr int kParts = kDim / 32;    // groups of 32 channels
  static constexpr int kValues = Tile::kValues;
  static constexpr int kRowStride = kDim + 16;
  static constexpr int kKeyWords = kTokens * kDim * kKeyBits / 32;
  static constexpr int kValueWords = kTokens * kDim * kValueBits / 32;
  static constexpr int kParamWords = 16 * kDim / 4;

  struct Shared {
    float low[32][kRowStride];  // [4 tokens][Position]
    float high[32][kRowStride];
    float base[4][kDim];        // [32 tokens][CoderPosition]
    float inverse[4][kDim];
    float shift[4][kDim];
    uint32_t codes[kTokens * kDim / 8];  // 2-bit keys: bytes 0 and 2 of words, one half for each of two warps
    uint32_t params[kParamWords];
    float squares[2][kMaxClusterHeads][kTokens];  // of all heads, page by page in turns: other CTAs write them
    uint64_t squares_arrived[2];                  // barriers
    float factor[kTokens];                        // 1 / norm
    alignas(128) uint8_t next[kThreads / 32][Tile::kFetchedBytes];  // rows of the next page, each warp's own
  };

  /// Once, before the first page, and after the last: a CTA writes to others' shared memory while they are there.
  __device__ static void Begin(const SealParams& p, Shared& s) {
    if (!p.norms_in_cluster || p.num_kv_heads == 1) return;
    if (threadIdx.x == 0) {
      for (uint64_t& barrier : s.squares_arrived) BarrierInit(SharedAddress(&barrier), 1);
      asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    ClusterArrive();
    ClusterWait();
  }
  __device__ static void End(const SealParams& p) {
    if (!p.norms_in_cluster || p.num_kv_heads == 1) return;
    ClusterArrive();
    ClusterWait();
  }

  /// The rows of a page on their way, while another one is sealed; Run seals what was fetched last, after `then` has fetched the next.
  __device__ static void Fetch(const SealParams& p, const SealJob& job, int head, int side, Shared& s) {
    Tile::Fetch(MakeRowSource<kDim>(p.rows, job, p.num_kv_heads, head, side), SharedAddress(s.next[Warp()]), [side](int r) { return TokenOf(side, r); });
  }
  /// turn: how many pages of keys this CTA has sealed.
  template <class Then>
  __device__ static void Run(const SealParams& p, const SealJob& job, int head, int side, int turn, uint8_t* out, Shared& s, Then then) {
    typename Tile::Raw raw;
    Tile::Take(SharedAddress(s.next[Warp()]), raw);
    then();
    if (side == 0) {
      Keys(p, job, head, turn, raw, out, s);
    } else {
      Values(p, job, raw, out, s);
    }
  }

 private:
  static_assert(Page::kKeyScale == Page::kKeyCodes + 4 * kKeyWords && Page::kValueScale == Page::kValueCodes + 4 * kValueWords);

  __device__ static int Lane() { return static_cast<int>(threadIdx.x & 31); }
  __device__ static int Warp() { return static_cast<int>(threadIdx.x / 32); }

  /// Token of row r of a warp.
  __device__ static int TokenOf(int side, int r) {
    const int warp = Warp();
    if (side == 0) return 16 * warp + r;
    // Pairs of tokens, a word's fields in one lane: row g + 8 is the token after row g's.
    return 64 * (warp >> 2) + 32 * (warp >> 1 & 1) + 16 * (r >> 2 & 1) + 8 * (warp & 1) + 2 * (r & 3) + (r >> 3);
  }

  // ---- keys
  __device__ static void Keys(const SealParams& p, const SealJob& job, int head, int turn, const typename Tile::Raw& raw, uint8_t* out, Shared& s) {
    const int g = Lane() >> 2;
    const int token[2] = {TokenOf(0, g), TokenOf(0, g + 8)};
    if (p.token_scale && p.norms_in_cluster) SendSquares(p.num_kv_heads, head, turn, raw, token, s);
    float x[2][kValues];
    Tile::template Rotate<true>(p.rotate, raw, x);
    if (p.token_scale) TokenFactors(p, job, turn, out, s);
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
    const uint4* codes = reinterpret_cast<const uint4*>(s.codes);
    for (int i = threadIdx.x; i < kKeyWords / 4; i += kThreads) {
      if constexpr (kKeyBits == 2) {
        const uint4 even = codes[i], odd = codes[kKeyWords / 4 + i];
        to[i] = make_uint4(even.x | odd.x << 8, even.y | odd.y << 8, even.z | odd.z << 8, even.w | odd.w << 8);
      } else {
        to[i] = codes[i];
      }
    }
    CopyParams(s, out + Page::kKeyScale);
    if (!p.token_scale) {
      for (int w = threadIdx.x; w < kTokens / 2; w += kThreads) reinterpret_cast<uint32_t*>(out + Page::kTokenNorm)[w] = 0x3c003c00u;  // 1
    }
    __syncthreads();
  }

  /// Norms over all kv heads: each CTA of the cluster adds up its head and sends the sums to all, which add the heads in the same order. Two places
  /// are enough: a CTA that sends the sums of a page has those of the page before from all others, who have read the page before that.
  __device__ static void SendSquares(int num_heads, int head, int turn, const typename Tile::Raw& raw, const int (&token)[2], Shared& s) {
    const uint32_t barrier = SharedAddress(&s.squares_arrived[turn & 1]);
    if (threadIdx.x == 0 && num_heads > 1) BarrierArriveExpect(barrier, num_heads * kTokens * static_cast<int>(sizeof(float)));
    float sum[2];
    Tile::Squares(raw, sum);
    if (num_heads == 1) {  // no cluster
      if ((Lane() & 3) == 0) s.squares[turn & 1][0][token[0]] = sum[0], s.squares[turn & 1][0][token[1]] = sum[1];
      return;
    }
    for (int to = Lane() & 3; to < num_heads; to += 4) {
      const uint32_t there = InCluster(barrier, to);
#pragma unroll
      for (int r = 0; r < 2; ++r) SendToCluster(InCluster(SharedAddress(&s.squares[turn & 1][head][token[r]]), to), sum[r], there);
    }
  }

  __device__ static void TokenFactors(const SealParams& p, const SealJob& job, int turn, uint8_t* out, Shared& s) {
    if (p.norms_in_cluster) {
      if (p.num_kv_heads > 1) {
        BarrierWait(SharedAddress(&s.squares_arrived[turn & 1]), turn >> 1 & 1);
      } else {
        __syncthreads();
      }
    }
    if (threadIdx.x < kTokens) {
      const int t = threadIdx.x;
      float sum = 0;
      if (p.norms_in_cluster) {
        for (int h = 0; h < p.num_kv_heads; ++h) sum += s.squares[turn & 1][h][t];
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
    const int group_rows = p.key_group_size / 4;  // a row is 4 tokens; a power of two
    for (int i = threadIdx.x; i < 2 * kDim; i += kThreads) {
      const int part = i / (kDim / 2), position = 2 * (i % (kDim / 2)), k = ValueAt(position), q = LaneAt(position), channel = Tile::ChannelOf(k, q);
      const int first = part * 8 & -group_rows;
      float2 low = *reinterpret_cast<const float2*>(&s.low[first][position]), high = *reinterpret_cast<const float2*>(&s.high[first][position]);
      const auto narrow = [&](int row) {
        const float2 l = *reinterpret_cast<const float2*>(&s.low[row][position]), h = *reinterpret_cast<const float2*>(&s.high[row][position]);
        low = make_float2(fminf(low.x, l.x), fminf(low.y, l.y));
        high = make_float2(fmaxf(high.x, h.x), fmaxf(high.y, h.y));
      };
#pragma unroll
      for (int row = 1; row < 8; ++row) narrow(first + row);
#pragma unroll 1
      for (int row = first + 8; row < first + group_rows; ++row) narrow(row);
      const GroupCoder c = MakeGroupCoder<kKeyBits>(p.key_float_min, low.x, high.x), d = MakeGroupCoder<kKeyBits>(p.key_float_min, low.y, high.y);
      const int coder = CoderPosition(k / 4, q) + k % 4;
      *reinterpret_cast<float2*>(&s.base[part][coder]) = make_float2(c.base, d.base);
      *reinterpret_cast<float2*>(&s.inverse[part][coder]) = make_float2(c.inverse, d.inverse);
      *reinterpret_cast<float2*>(&s.shift[part][coder]) = make_float2(c.shift, d.shift);
      s.params[(Page::KeyScaleByte(part, channel) - Page::kKeyScale) / 4] = c.scale | static_cast<uint32_t>(d.scale) << 16;
      s.params[(Page::KeyOffsetByte(part, channel) - Page::kKeyScale) / 4] = c.offset | static_cast<uint32_t>(d.offset) << 16;
    }
  }

  __device__ static void KeyCodes(const bool (&exact)[2], const float (&x)[2][kValues], Shared& s) {
    const int g = Lane() >> 2, q = Lane() & 3, part = Warp() / 2;
    // Fields 2 odd + high of both halves of a word; with 2 bits the other half of a byte pair is the next warp's.
    constexpr uint32_t kFirst = kKeyBits == 2 ? 0x00330033u : 0x0f0f0f0fu, kSecond = kFirst << kKeyBits;
    const uint32_t keep = (exact[0] ? 0 : kFirst) | (exact[1] ? 0 : kSecond);
    constexpr uint32_t kNoCodes = 0u - kCodeMagicBits * (kKeyBits == 2 ? 0x00550055u : 0x11111111u);  // what 8 biased codes add up to besides
    uint4* to = reinterpret_cast<uint4*>(s.codes) + (kKeyBits == 2 ? Warp() % 2 * (kKeyWords / 4) : Warp() % 2 * 32);
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
            const uint32_t code = BiasedCode<kKeyBits>(SaturatedMultiplyAdd(x[r][4 * b + e] - bases[e], inverses[e], shifts[e]));
            words[2 * (b / 2 % 2) + e / 2] += code << (kKeyBits * (2 * (b % 2) + r) + 16 * (e % 2));
          }
        }
      }
      to[(part * kQuads + quad) * (kKeyBits / 2) * 32 + 4 * g + q] = make_uint4(words[0] & keep, words[1] & keep, words[2] & keep, words[3] & keep);
    }
  }

  // ---- values
  __device__ static void Values(const SealParams& p, const SealJob& job, const typename Tile::Raw& raw, uint8_t* out, Shared& s) {
    const int g = Lane() >> 2, q = Lane() & 3, warp = Warp();
    const int i = 2 * (warp >> 1 & 1) + (warp & 1), quad = warp >> 2, odd = g >> 2, pair = g & 3;
    const int first = TokenOf(1, g);
    const int token[2] = {first, first + 1};
    float x[2][kValues];
    Tile::template Rotate<true>(p.rotate, raw, x);

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
        low[k / 8] = k % 8 == 0 ? x[r][k] : fminf(low[k / 8], x[r][k]);
        high[k / 8] = k % 8 == 0 ? x[r][k] : fmaxf(high[k / 8], x[r][k]);
      }
      coder[r] = ValueCoder(p, rotation, low, high);
      if (IsExact(job, token[r])) coder[r].scale = coder[r].offset = 0;
    }
    if (q % kLanesPerPart == 0) {
      s.params[(Page::ValueScaleByte(part, first) - Page::kValueScale) / 4] = coder[0].scale | static_cast<uint32_t>(coder[1].scale) << 16;
      s.params[(Page::ValueOffsetByte(part, first) - Page::kValueScale) / 4] = coder[0].offset | static_cast<uint32_t>(coder[1].offset) << 16;
    }

    // 2 bits: both blocks of a part in a word, fields 4 t + 2 odd + high. 4 bits: a word each, fields 2 odd + high.
    constexpr int kPerPart = kValueBits;  // words [block][channel % 2]
    constexpr uint32_t kNoCodes = 0u - kCodeMagicBits * (kValueBits == 2 ? 0x05050505u : 0x00110011u);  // what the biased codes add up to besides
    const uint32_t keep = (IsExact(job, token[0]) ? 0 : 0x0000ffffu) | (IsExact(job, token[1]) ? 0 : 0xffff0000u);
    uint32_t half_words[kPerPart * kParts];
#pragma unroll
    for (int at = 0; at < kParts; ++at) {
      const int from = (Lane() & ~3) + at * kLanesPerPart;
      uint32_t words[kPerPart];
#pragma unroll
      for (int n = 0; n < kPerPart; ++n) words[n] = kNoCodes;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float base = __shfl_sync(~0u, coder[r].base, from), inverse = __shfl_sync(~0u, coder[r].inverse, from),
                    shift = __shfl_sync(~0u, coder[r].shift, from);
#pragma unroll
        for (int e = 0; e < 8; ++e) {  // block 2 at + e / 4, channel bit 3: e / 2 % 2
          const uint32_t code = BiasedCode<kValueBits>(SaturatedMultiplyAdd(x[r][8 * at + e] - base, inverse, shift));
          const int word = kValueBits == 2 ? e % 2 : 2 * (e / 4) + e % 2, t = kValueBits == 2 ? e / 4 : 0;
          words[word] += code << (kValueBits * (4 * t + e / 2 % 2) + 16 * r);
        }
      }
#pragma unroll
      for (int n = 0; n < kPerPart; ++n) half_words[kPerPart * at + n] = (words[n] & keep) << (2 * kValueBits * odd);
    }
    // The lane with the other value of `odd` has the other half of each word: each completes half of the words.
#pragma unroll
    for (int n = 0; n < kPerPart * kParts / 2; ++n) {
      constexpr int kHalf = kPerPart * kParts / 2;
      const uint32_t other = __shfl_xor_sync(~0u, odd ? half_words[n] : half_words[n + kHalf], 16);
      const uint32_t word = other | (odd ? half_words[n + kHalf] : half_words[n]);
      const int at = (odd ? n + kHalf : n) / kPerPart, next = n % 2, block = kValueBits == 2 ? 0 : n % kPerPart / 2;  // kParts is even
      const int row = (at * 2 + quad) * (kValueBits / 2) + block;
      s.codes[(row * 32 + 4 * (2 * q + next) + pair) * 4 + i] = word;
    }
    __syncthreads();
    for (int w = threadIdx.x; w < kValueWords / 4; w += kThreads)
      reinterpret_cast<uint4*>(out + Page::kValueCodes)[w] = reinterpret_cast<const uint4*>(s.codes)[w];
    CopyParams(s, out + Page::kValueScale);
    __syncthreads();
  }

  /// The coder of the lane's part from the ranges of all parts over the lane's channels.
  /// Ranges and what is coded come without the rotation's factor.
  __device__ static GroupCoder ValueCoder(const SealParams& p, float rotation, const float (&low)[kParts], const float (&high)[kParts]) {
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
    GroupCoder c = MakeGroupCoder<kValueBits>(p.value_float_min, mn * rotation, mx * rotation);
    c.base = p.value_float_min && p.rotate ? c.base * __fdiv_rn(1.f, rotation) : p.value_float_min ? c.base : mn;
    c.inverse *= rotation;
    return c;
  }

  __device__ static void CopyParams(const Shared& s, uint8_t* to) {
    for (int i = threadIdx.x; i < kParamWords / 4; i += kThreads) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(s.params)[i];
  }
};

}  // namespace kvrazor::cuda
