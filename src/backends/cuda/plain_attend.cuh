// Decode attention by composition, for every format and every card from compute capability 8.0 on: a warp decodes 16 tokens of a plain page
// into 16-bit rows in its own shared memory and attends over them as over any rows (row_unit.cuh). Nothing else is staged or overlapped: right,
// not fast. D = 128, 8 warps (D = 256: 4):
//
//   grid     (splits, kv heads x blocks of query rows, sequences); a split has an equal run of the sequence's pages, read from kv_len
//   warp w   16 tokens each: w, w + 8, ... of the run: plain page > f32 > f16 rows [2: k, v][16][D] > logits, softmax, weighted values
//   end      states of the warps > part of the split > the split that arrives last merges all parts in order: equal bits every run
//
// Decoded keys stay in the basis of the page, queries are rotated instead, in two f16 parts (the rounded value and what that lost); the state
// is rotated when a warp passes from pages whose values are rotated to rows, as in attend_consumer.cuh.
#pragma once

#include "src/backends/cuda/attend_result.cuh"
#include "src/backends/cuda/attend_shared.h"
#include "src/backends/cuda/plain_params.h"
#include "src/backends/cuda/plain_read.cuh"
#include "src/backends/cuda/row_rotation.cuh"
#include "src/backends/cuda/row_unit.cuh"
#include "src/backends/cuda/visibility.cuh"

namespace kvrazor::cuda {

template <int kDim_, int kTiles_>
struct PlainAttend {
  static constexpr int kDim = kDim_, kTiles = kTiles_;
  static constexpr int kWarps = kDim == 256 ? 4 : 8;
  static constexpr int kThreads = 32 * kWarps;
  static constexpr int kUnits = kTokens / kRowUnit;  // of a page
  static constexpr int kFragments = kDim / 16 * 32;
  static constexpr int kScratchRow = kDim + 8;  // floats
  using State = RunningSoftmax<kDim, kTiles>;

  struct Stage {
    alignas(128) uint8_t k[kRowUnit * 2 * kDim];
    uint8_t v[kRowUnit * 2 * kDim];
  };
  struct Queries {
    float model[kBlockRows][kDim], pages[kBlockRows][kDim];
  };
  struct Shared {
    union {
      Stage stage[kWarps];
      Queries queries;                                // before
      float scratch[kWarps][kBlockRows][kScratchRow];  // after
    };
    uint2 row_query[kFragments];
    uint2 page_query[2][kFragments];  // rounded, and what that lost
    float level[2][16];               // of a codebook: keys, values
    float2 lse[kWarps][kBlockRows];
    bool is_last;
  };
  static_assert(sizeof(Shared) <= 99 * 1024, "what the smallest of these cards has");

  __device__ static void Run(const PlainAttendParams& p, Shared& s) {
    const AttendParams& a = p.a;
    const int tile = blockIdx.y, sequence = blockIdx.z, num_splits = gridDim.x;
    Segment segment{};
    segment.sequence = sequence;
    segment.kv_head = tile / a.num_blocks;
    segment.block = tile % a.num_blocks;
    segment.rows = min(a.block_rows, a.qo_len * a.gqa_ratio - segment.block * a.block_rows);
    PrepareQueries(p, segment, s);
    __syncthreads();

    const int kv_len = min(max(__ldg(a.kv_len + sequence), 0), a.table_stride * kTokens);
    const int first_page = a.window > 0 ? max(kv_len - (a.causal ? a.qo_len - 1 : 0) - a.window, 0) / kTokens : 0;
    const int num_pages = max((kv_len + kTokens - 1) / kTokens - first_page, 0);
    const auto border = [&](int split) { return first_page + static_cast<int>(int64_t{num_pages} * split / num_splits); };
    const int warp = threadIdx.x / 32;
    Reader reader{p, s, segment, kv_len};
    for (int unit = border(blockIdx.x) * kUnits + warp; unit < border(blockIdx.x + 1) * kUnits; unit += kWarps) reader.Take(unit / kUnits, unit % kUnits);
    reader.Leave();
    __syncthreads();  // stages become scratch
    reader.Store(warp);
    __syncthreads();
    Merge(p, segment, s);
  }

 private:
  /// Query rows in f32, rotated for the pages, then as operand B.
  __device__ static void PrepareQueries(const PlainAttendParams& p, const Segment& segment, Shared& s) {
    const AttendParams& a = p.a;
    const int warp = threadIdx.x / 32, lane = threadIdx.x & 31;
    constexpr int kCount = kDim / 32;
    for (int row = warp; row < kBlockRows; row += kWarps) {
      float x[kCount] = {};
      if (row < segment.rows) {
        const uint16_t* from = a.q + segment.sequence * a.q_stride + QueryRow(a, segment, row).Index(a) * kDim + kCount * lane;
#pragma unroll
        for (int i = 0; i < kCount; ++i) x[i] = a.bf16 ? __uint_as_float(static_cast<uint32_t>(from[i]) << 16) : FromF16(from[i]);
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) s.queries.model[row][kCount * lane + i] = x[i];
      if (p.page.k.rotate) {
        RotateOverWarp(x);
#pragma unroll
        for (int i = 0; i < kCount; ++i) x[i] *= kHadamardNorm<kDim>;
      }
#pragma unroll
      for (int i = 0; i < kCount; ++i) s.queries.pages[row][kCount * lane + i] = x[i];
    }
    if (threadIdx.x < 32) s.level[threadIdx.x / 16][threadIdx.x % 16] = (threadIdx.x < 16 ? p.page.k : p.page.v).level[threadIdx.x % 16];
    __syncthreads();
    for (int i = threadIdx.x; i < kFragments; i += kThreads) {
      const int g = i % 32 / 4, channel = i / 32 * 16 + 2 * (i % 4);
      const int row = kTiles == 2 ? (g >> 1) + 4 * (g & 1) : g >> 1;  // of column g
      const bool is_zero = kTiles == 1 && g % 2 != 0;
      const auto pair = [&](const float (&of)[kBlockRows][kDim], int c, float (&x)[2]) {
        x[0] = is_zero ? 0.f : of[row][c];
        x[1] = is_zero ? 0.f : of[row][c + 1];
      };
      uint32_t model[2], high[2], low[2];
#pragma unroll
      for (int t = 0; t < 2; ++t) {
        float x[2];
        pair(s.queries.model, channel + 8 * t, x);
        model[t] = PackF16(x[0], x[1]);
        pair(s.queries.pages, channel + 8 * t, x);
        high[t] = PackF16(x[0], x[1]);
        low[t] = PackF16(x[0] - LowF16(high[t]), x[1] - HighF16(high[t]));
      }
      s.row_query[i] = make_uint2(model[0], model[1]);
      s.page_query[0][i] = make_uint2(high[0], high[1]);
      s.page_query[1][i] = make_uint2(low[0], low[1]);
    }
  }

  /// One warp's way through its units.
  struct Reader {
    const PlainAttendParams& p;
    Shared& s;
    const Segment& segment;
    int kv_len;
    State state;
    bool any = false, in_pages = false;  // what the state is in the basis of

    __device__ Reader(const PlainAttendParams& params, Shared& shared, const Segment& of, int length) : p(params), s(shared), segment(of), kv_len(length) { state.Clear(); }

    __device__ Stage& stage() { return s.stage[threadIdx.x / 32]; }

    /// 16 tokens of a page.
    __device__ __forceinline__ void Take(int page, int part) {
      const AttendParams& a = p.a;
      const int base = page * kTokens + part * kRowUnit, last = min(kv_len - base, kRowUnit);
      const int32_t entry = __ldg(a.page_table + static_cast<int64_t>(segment.sequence) * a.table_stride + page);
      if (IsRowPage(entry)) {
        const uint8_t* rows = a.row_pages + (static_cast<int64_t>(PageIndex(entry)) * a.num_kv_heads + segment.kv_head) * (2 * kTokens * 2 * kDim);
        Rows(rows + part * sizeof(stage().k), kTokens * 2 * kDim, base, last);
        return;
      }
      const int sinks = page == 0 && part == 0 ? a.sink_tokens : 0;
      if (sinks > 0) {
        const uint8_t* rows = a.sink_rows + (static_cast<int64_t>(segment.sequence) * a.num_kv_heads + segment.kv_head) * (2 * sizeof(stage().k));
        Rows(rows, sizeof(stage().k), 0, min(sinks, last));
      }
      Packed(a.packed_pages + entry * p.page.page_bytes, part, base, sinks, last);
    }

    __device__ __forceinline__ void Rows(const uint8_t* from, int v_distance, int base, int last) {
      if (last <= 0 || IsHidden(base, 0, last)) return;
      Enter(false);
      __syncwarp();
      for (int at = 16 * static_cast<int>(threadIdx.x & 31); at < last * 2 * kDim; at += 16 * 32) {
        *reinterpret_cast<uint4*>(stage().k + at) = __ldg(reinterpret_cast<const uint4*>(from + at));
        *reinterpret_cast<uint4*>(stage().v + at) = __ldg(reinterpret_cast<const uint4*>(from + v_distance + at));
      }
      __syncwarp();
      AttendRows<kDim, kTiles>(p.a, stage().k, s.row_query, last, Sight(base, 0, last), state);
    }

    __device__ __forceinline__ void Packed(const uint8_t* page, int part, int base, int first, int last) {
      if (first >= last || IsHidden(base, first, last)) return;
      Enter(true);
      __syncwarp();
      ReadPlainKeys<kDim>(p.page.k, page, segment.kv_head, part * kRowUnit, s.level[0], [&](int token, int channel, const float (&x)[16]) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
          *reinterpret_cast<uint4*>(stage().k + RowByte<kDim>(token, channel + 8 * half)) = PackChunk(x + 8 * half);
        }
      });
      ReadPlainValues<kDim>(p.page.v, page + p.page.k.at.page_bytes, segment.kv_head, part * kRowUnit, s.level[1], [&](int token, int channel, float x, float y) {
        *reinterpret_cast<uint32_t*>(stage().v + RowByte<kDim>(token, channel)) = PackSaturated(x, y);
      });
      __syncwarp();
      AttendRows<kDim, kTiles, 2>(p.a, stage().k, s.page_query[0], last, Sight(base, first, last), state);
    }

    __device__ __forceinline__ void Enter(bool pages) {
      if (any && in_pages != pages && p.page.v.rotate) state.Rotate();
      any = true;
      in_pages = pages;
    }
    /// The state in the model's basis.
    __device__ __forceinline__ void Leave() {
      if (any && in_pages && p.page.v.rotate) state.Rotate();
    }

    /// No query row sees any of the tokens [base + first, base + last).
    __device__ bool IsHidden(int base, int first, int last) const {
      const AttendParams& a = p.a;
      if (base + last <= VisibleBegin(a, VisibleEnd(a, kv_len, 0)) || base + first >= VisibleEnd(a, kv_len, a.qo_len - 1)) return true;
      if (!a.mask) return false;
      constexpr uint16_t kMinusInfinity = 0xfc00;
      const int token = static_cast<int>(threadIdx.x & 15);
      bool seen = false;
      for (int i = static_cast<int>(threadIdx.x & 31) / 16; i < a.qo_len; i += 2) {
        const uint16_t* row = a.mask + (static_cast<int64_t>(segment.sequence) * a.qo_len + i) * a.mask_stride + base;
        seen |= token >= first && token < last && __ldg(row + token) != kMinusInfinity;
      }
      return !__any_sync(~0u, seen);
    }

    __device__ Visible<kTiles> Sight(int base, int first, int last) const {
      const AttendParams& a = p.a;
      const int most_begin = VisibleBegin(a, VisibleEnd(a, kv_len, a.qo_len - 1));
      const bool plain = first == 0 && base >= most_begin && base + last <= VisibleEnd(a, kv_len, 0) && !a.mask && !(a.softcap_log2 > 0);
      return {plain, base, first, last, kv_len, &segment};
    }

    __device__ __forceinline__ void Store(int warp) {
      const int lane = threadIdx.x & 31, g = lane >> 2, q = lane & 3;
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int o = 4; o < 32; o <<= 1) state.sum[n] += __shfl_xor_sync(~0u, state.sum[n], o);
        const int row = q + 4 * n;
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) s.scratch[warp][row][8 * i + g] = state.out[n][i];
        if (g == 0) s.lse[warp][row] = make_float2(state.top[n], state.sum[n]);
      }
    }
  };

  /// The warps' states to the result, or to a part; the split that comes last takes all parts.
  __device__ static void Merge(const PlainAttendParams& p, const Segment& segment, Shared& s) {
    const AttendParams& a = p.a;
    const int num_splits = gridDim.x, items = segment.rows * (kDim / 4);
    const int64_t tile = static_cast<int64_t>(segment.sequence) * gridDim.y + blockIdx.y;
    const auto place = [&](int split, int row) { return (tile * num_splits + split) * kBlockRows + row; };
    for (int item = threadIdx.x; item < items; item += kThreads) {
      const int row = item / (kDim / 4), channel = item % (kDim / 4) * 4;
      Part total;
      float top = kNoLogit;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) top = fmaxf(top, s.lse[w][row].x);
      total.Rescale(top);
#pragma unroll
      for (int w = 0; w < kWarps; ++w) total.Add(s.lse[w][row].x, s.lse[w][row].y, *reinterpret_cast<const float4*>(&s.scratch[w][row][channel]));
      if (num_splits == 1) {
        StoreResult<kDim>(a, segment, row, channel, total.top, total.sum, total.out);
      } else {
        const int64_t at = place(blockIdx.x, row);
        __stcg(reinterpret_cast<float4*>(a.partial_out + at * kDim + channel), total.out);
        if (channel == 0) __stcg(reinterpret_cast<float2*>(a.partial_lse) + at, make_float2(total.top, total.sum));
      }
    }
    if (num_splits == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) s.is_last = atomicInc(p.arrivals + tile, num_splits - 1) == static_cast<unsigned>(num_splits - 1);  // 0 again then
    __syncthreads();
    if (!s.is_last) return;
    __threadfence();
    for (int item = threadIdx.x; item < items; item += kThreads) {
      const int row = item / (kDim / 4), channel = item % (kDim / 4) * 4;
      Part total;
      for (int split = 0; split < num_splits; ++split) {
        const int64_t at = place(split, row);
        const float2 lse = __ldcg(reinterpret_cast<const float2*>(a.partial_lse) + at);
        if (lse.x > total.top) total.Rescale(lse.x);
        total.Add(lse.x, lse.y, __ldcg(reinterpret_cast<const float4*>(a.partial_out + at * kDim + channel)));
      }
      StoreResult<kDim>(a, segment, row, channel, total.top, total.sum, total.out);
    }
  }
};

/// kDim and kTiles as they are: nvcc takes no class as a kernel's template argument.
template <int kDim, int kTiles>
__global__ __launch_bounds__(PlainAttend<kDim, kTiles>::kThreads) void AttendPlain(const __grid_constant__ PlainAttendParams p) {
  extern __shared__ __align__(128) uint8_t shared[];
  PlainAttend<kDim, kTiles>::Run(p, *reinterpret_cast<typename PlainAttend<kDim, kTiles>::Shared*>(shared));
}

}  // namespace kvrazor::cuda
