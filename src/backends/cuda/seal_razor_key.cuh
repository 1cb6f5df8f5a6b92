// Seals the keys of one head of a page with razor (formulas: backends/cpu/seal_razor_key.cc), 128 threads. A strip is 32 tokens; a quarter, a
// quarter of the channels. kSplit = 1: a CTA seals a page, a warp a strip, a thread a token (throughput). kSplit = 4: a CTA seals a strip, the
// four of a page are a cluster, a thread has a quarter of a token, a warp a share of the blocks of channels (time of one page). All sums
// are formed in the same order in both, so the bytes are the same.
//
//   1. rows  -> y, rotated (seal_tile.cuh), in shared memory; sums of columns by strips -> mean
//   2. token -> r = y - a mean, the best scale s, by quarters; r / s as two f16 (high + low)
//   3. v = r / s (I + W), block of 16 channels by block                             mma: high high + low high + high low
//   4. blocks, first first: b = levels of earlier blocks times W (mma, levels are exact in f16, W = high + low); then channel by
//      channel: code = rne(v - b + L/2), b of the block's later channels += W level     thread = token
//      feedback in units of s: x / s = v - b, because e = r - s l and x = r + W^T e
//      gain = sum d v^2 / sum d v (l + b)
//   5. codes of 4 channels in a word -> words of the page: tokens 16 apart side by side
//
//   tile     [tokens][D] words in chunks of 4 channels, chunk x of token t at x ^ Swizzle(t): y, r as floats; then {high 0 1, high 2 3, low 0 1,
//            low 2 3}; v as floats; {level 0 1, level 2 3, codes, 0}
//
// Products of 3 and 4 lose 2^-22 of a term: a code differs from float64's only where x / s is that close to a half.
#pragma once

#include "src/backends/cuda/seal_razor_key_codes.cuh"
#include "src/backends/cuda/seal_razor_key_scale.cuh"
#include "src/backends/cuda/small_floats.cuh"

namespace kvrazor::cuda {

template <class PackedPage, int kDim, int kBits, bool kRankOne, int kSplit>
struct RazorKeySeal : RazorKeyTile<PackedPage, kDim, kBits, kRankOne, kSplit> {
  using KeyTile = RazorKeyTile<PackedPage, kDim, kBits, kRankOne, kSplit>;
  using Scale = RazorKeyScale<KeyTile>;
  using Codes = RazorKeyCodes<KeyTile>;
  using typename KeyTile::Metric;
  using typename KeyTile::Page;
  using typename KeyTile::Shared;
  using KeyTile::kStrip, KeyTile::kThreads, KeyTile::kWhole;
  using KeyTile::OfStrip, KeyTile::SharedMetric, KeyTile::Swizzle, KeyTile::SyncPage, KeyTile::SyncStrip;

  /// Once, before the first page: with kSplit = 4 the metric is on its way to shared memory.
  __device__ static void Begin(const SealParams& p, int head, Shared& s) {
    if constexpr (!kWhole) {
      if (!p.metric) return;
      const uint32_t barrier = SharedAddress(&s.shares.arrived);
      if (threadIdx.x == 0) {
        BarrierInit(barrier, 1);
        FenceAsyncProxy();
        BarrierArriveExpect(barrier, Metric::kBytes);
        BulkCopyKept(SharedAddress(s.shares.metric), p.metric + int64_t{head} * Metric::kBytes, Metric::kBytes, barrier);
      }
    }
  }

  /// strip: of this CTA, 0 with kSplit = 1.
  __device__ static void Run(const SealParams& p, const SealJob& job, int head, int strip, uint8_t* out, Shared& s) {
    const int first = strip * kStrip;
    Scale::Load(p, job, head, first, s);
    __syncthreads();
    Scale::Mean(job, s);
    const int token = kWhole ? threadIdx.x : threadIdx.x & 31;
    const float scale = Scale::TokenScale(IsExact(job, first + token), token, s);
    const uint8_t* metric = nullptr;
    if (p.metric) metric = kWhole ? p.metric + int64_t{head} * Metric::kBytes : SharedMetric(s);
    float gain;
    if (metric) {
      Codes::template Divide<true>(token, scale, s);
      SyncStrip();
      Codes::Image(metric, s);
      gain = Codes::template Encode<true>(metric, scale, s);
    } else {
      Codes::template Divide<false>(token, scale, s);
      SyncStrip();
      gain = Codes::template Encode<false>(nullptr, scale, s);
    }
    if (kWhole || threadIdx.x < kStrip) s.scale[token] = gain * scale;
    SyncPage();
    Store(strip, s, out);
    if constexpr (!kWhole) {  // nobody leaves, or writes again, before the others have read
      ClusterArriveRead();
      ClusterWait();
    }
  }

 private:
  // ---- 5
  __device__ static void Store(int strip, Shared& s, uint8_t* out) {
    const int tid = threadIdx.x;
    const float scale = kWhole ? s.scale[tid] : OfStrip(s.scale, tid / kStrip)[tid % kStrip];
    float largest = scale;
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, mask));
    if ((tid & 31) == 0) s.reduce[tid / 32] = largest;

    uint32_t* words = reinterpret_cast<uint32_t*>(out + Page::kKeyCodes);
    constexpr int kUnits = kDim / 32 * 128, kShare = kUnits / kSplit;  // tokens 16 apart of a word's four channels
    for (int unit = strip * kShare + tid; unit < (kWhole ? kUnits : (strip + 1) * kShare); unit += kThreads) {
      const int r = unit % 4, lane = unit / 4 % 32, kt = unit / 128;
      const int row = (lane >> 2) + 8 * (r & 1), chunk = 8 * kt + 4 * (r >> 1) + (lane & 3);
      uint32_t c[8];  // of tokens 16 i + row
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        const int token = 16 * (kWhole ? i : i % 2) + row;
        c[i] = OfStrip(reinterpret_cast<const uint4*>(s.tile[token]) + (chunk ^ Swizzle(token)), i / 2)->z;
      }
      uint32_t* to = words + kt * kBits * 128 + lane * 4 + r;
      if constexpr (kBits == 2) {
        to[0] = c[0] | c[1] << 2 | c[2] << 4 | c[3] << 6;
        to[128] = c[4] | c[5] << 2 | c[6] << 4 | c[7] << 6;
      } else {  // packed_page.h
        constexpr uint32_t kLow = 0x01010101u, kHigh = 0x03030303u;
        to[0] = c[0] | c[1] << 3 | (c[6] >> 1 & kHigh) << 6;
        to[128] = c[2] | c[3] << 3 | (c[6] & kLow) << 6 | (c[7] & kLow) << 7;
        to[256] = c[4] | c[5] << 3 | (c[7] >> 1 & kHigh) << 6;
      }
    }
    __syncthreads();
    largest = fmaxf(fmaxf(s.reduce[0], s.reduce[1]), fmaxf(s.reduce[2], s.reduce[3]));
    const float base = largest > 0 ? ldexpf(1.f, ilogbf(largest)) : 0.f;
    const uint8_t stored = DeviceEncodeE3M5(scale, base);
    const int any_zero = __syncthreads_or(stored == 0);
    const int position = (tid % 8) * 16 + 2 * (tid / 16) + (tid % 16) / 8;  // VectorPosition
    if constexpr (kRankOne) {
      if (kWhole || tid / kStrip == strip) reinterpret_cast<uint16_t*>(out + Page::kMeanFactor)[position] = s.factor[tid % (kTokens / kSplit)];
    }
    if (!kWhole && strip != 0) return;
    out[Page::kTokenScale + position] = stored;
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
    if (tid == 0) {
      *reinterpret_cast<uint4*>(out + Page::kHeader) = make_uint4(__float_as_uint(base), __float_as_uint(s.reduce[4]), any_zero, 0);
    }
    for (int at = Page::kHeader + 16 + 4 * tid; at < Page::kBytes; at += 4 * kThreads) *reinterpret_cast<uint32_t*>(out + at) = 0;
  }
};

}  // namespace kvrazor::cuda
