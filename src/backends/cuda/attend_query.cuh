// Queries to operand fragments, by the merger warps: one warp a tile of query heads, and one for the fragments of 16-bit rows.
#pragma once

#include "src/backends/cuda/attend_config.cuh"

namespace kvrazor::cuda {

template <class Config>
struct AttendQuery {
  using Shared = typename Config::Shared;
  using Codec = typename Config::Codec;
  static constexpr int kDim = Config::kDim, kTiles = Config::kTiles;

  /// Two channels of a query row.
  __device__ static float2 Values(uint32_t w, bool bf16) {
    return bf16 ? make_float2(LowBf16(w), HighBf16(w)) : make_float2(LowF16(w), HighF16(w));
  }

  /// A query row, or nullptr.
  __device__ static const uint16_t* FindRow(const AttendParams& a, const Segment& segment, int row) {
    if (row >= segment.rows) return nullptr;
    return a.q + segment.sequence * a.q_stride + QueryRow(a, segment, row).Index(a) * kDim;
  }

  /// Channels 16 kt + 2 qd and the next, and those 8 further, of a row, for every kt; as f16.
  __device__ static void LoadPairs(const uint16_t* row, bool bf16, int qd, uint2 (&w)[kDim / 16]) {
#pragma unroll
    for (int kt = 0; kt < kDim / 16; ++kt) {
      w[kt] = make_uint2(0, 0);
      if (!row) continue;
      const uint32_t* at = reinterpret_cast<const uint32_t*>(row + 16 * kt + 2 * qd);
      w[kt] = make_uint2(__ldg(at), __ldg(at + 4));
    }
    if (!bf16) return;
#pragma unroll
    for (int kt = 0; kt < kDim / 16; ++kt) {
      w[kt] = make_uint2(PackF16(LowBf16(w[kt].x), HighBf16(w[kt].x)), PackF16(LowBf16(w[kt].y), HighBf16(w[kt].y)));
    }
  }

  /// f16 fragments in the model's basis.
  __device__ static void StoreRowFragments(const AttendParams& a, const Segment& segment, uint2* to) {
    const int lane = threadIdx.x & 31, g = lane >> 2;
    uint2 w[kDim / 16];
    const int row = kTiles == 2 ? (g >> 1) + 4 * (g & 1) : (g & 1) ? kBlockRows : g >> 1;  // in column g
    LoadPairs(FindRow(a, segment, row), a.bf16 != 0, lane & 3, w);
#pragma unroll
    for (int kt = 0; kt < kDim / 16; ++kt) to[kt * 32 + lane] = w[kt];
  }

  /// Values of a query row as they stand in operand B: x[4 i + 2 t + e] is channel 16 i + Codec::ChannelOf(t, qd) + e of row
  /// (g / 2) + 4 tile.
  __device__ static void Load(const uint16_t* row, bool bf16, int qd, float (&x)[kDim / 4]) {
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        const uint32_t w = row ? __ldg(reinterpret_cast<const uint32_t*>(row + 16 * i + Codec::ChannelOf(t, qd))) : 0;
        const float2 v = Values(w, bf16);
        x[4 * i + 2 * t] = v.x;
        x[4 * i + 2 * t + 1] = v.y;
      }
    }
  }

  /// The same, rotated, times sqrt(D). H of order D is H16 in every 16 channels, one product with +-1 in f16 that rounds nothing, and then sums and
  /// differences of whole tiles.
  __device__ static void LoadRotated(const uint16_t* row, bool bf16, int g, int qd, float (&x)[kDim / 4]) {
    uint2 w[kDim / 16];
    LoadPairs(row, bf16, qd, w);
    uint32_t sign[2][2];  // [tile of 8 columns][channels 2 qd, + 8 and the next]: (-1)^popcount(channel & column)
#pragma unroll
    for (int t = 0; t < 2; ++t) {
      const int column = Codec::ChannelOf(t, g / 2) + g % 2;
#pragma unroll
      for (int eight = 0; eight < 2; ++eight) {
        const int channel = 2 * qd + 8 * eight;
        const uint32_t low = __popc(channel & column) & 1, high = __popc((channel + 1) & column) & 1;
        sign[t][eight] = 0x3c003c00u | low << 15 | high << 31;
      }
    }
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        float c[4] = {};
        MmaF16(c[0], c[1], c[2], c[3], w[i].x, 0, w[i].y, 0, sign[t][0], sign[t][1]);
        x[4 * i + 2 * t] = c[0];
        x[4 * i + 2 * t + 1] = c[1];
      }
    }
#pragma unroll
    for (int o = 4; o < kDim / 4; o <<= 1) {
#pragma unroll
      for (int i = 0; i < kDim / 4; ++i) {
        if (i & o) continue;
        const float u = x[i], w = x[i | o];
        x[i] = u + w;
        x[i | o] = u - w;
      }
    }
  }

  /// Tells the consumers what the segment is, by one lane.
  __device__ static void StoreInfo(const Shared& sm, const Segment& segment, int number, bool is_last) {
    const SegmentInfo info{segment, sm.sequences[segment.sequence].kv_len, is_last};
    sm.segments[number % kQuerySlots] = info;
    if (number == 0) sm.segments[kQuerySlots] = info;
  }

  /// This CTA has nothing to do.
  __device__ static void PrepareNothing(const Shared& sm, int warp) {
    if (warp > kTiles) return;
    if (warp == 0 && (threadIdx.x & 31) == 0) sm.segments[0] = sm.segments[kQuerySlots] = SegmentInfo{};
    WarpArrive(sm.q_ready);
  }

  /// Of the numbered segment.
  __device__ static void Prepare(const AttendParams& a, const Shared& sm, const Segment& segment, int number, bool is_last, int warp) {
    static_assert(kTiles + 1 <= kMergers);
    if (warp > kTiles) return;
    const int lane = threadIdx.x & 31, g = lane >> 2, qd = lane & 3;
    const int slot = number % kQuerySlots;
    uint8_t* fragments = sm.q_fragments + slot * Config::kQueryBytes;
    BarrierWait(sm.q_empty + 8 * slot, ((number / kQuerySlots) & 1) ^ 1);
    if (warp == kTiles) {
      if (lane == 0) StoreInfo(sm, segment, number, is_last);
      StoreRowFragments(a, segment, reinterpret_cast<uint2*>(fragments + Codec::kQueryBytes));
    } else {
      const uint16_t* row = FindRow(a, segment, (g >> 1) + 4 * warp);
      float x[kDim / 4];
      if constexpr (Config::kRotate) {
        LoadRotated(row, a.bf16 != 0, g, qd, x);
      } else {
        Load(row, a.bf16 != 0, qd, x);
      }
      Codec::StoreQuery(fragments, warp, x, Config::kRotate ? a.scale_log2 * kHadamardNorm<kDim> : a.scale_log2);
    }
    WarpArrive(sm.q_ready + 8 * slot);
  }
};

}  // namespace kvrazor::cuda
