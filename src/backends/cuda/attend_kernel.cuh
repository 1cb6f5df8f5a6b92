// Decode attention over packed pages, 16-bit rows and sinks, one launch (docs/cuda.md). One CTA an SM, persistent:
//
//   producer     1 warp   walks the segments of schedule.cuh, reads the page table, brings one unit a stage (bulk copies) into a ring
//   consumers    8 warps  one unit each, round robin; a stage belongs to one warp (the ring is a multiple of 8 stages)
//   mergers      3 warps  turn q into operand fragments for the next segment, merge the 8 states of the last one, write the result
//                         or a partial; the last CTA to arrive at a tile merges its parts, always in the order of the tile
//
//   consumer w:  w, w + 8, w + 16, ... of the segment's units > state > scratch [8 warps][gqa][D + 8] > mergers
//
// Sealed pages are summed in the rotated basis and 16-bit rows in the model's; a consumer rotates its state when it passes from one to
// the other, and what it hands over is in the model's basis.
#pragma once

#include "src/backends/cuda/affine_page.cuh"
#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/attend_shared.h"
#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/razor_page.cuh"
#include "src/backends/cuda/row_unit.cuh"
#include "src/backends/cuda/schedule.cuh"

namespace kvrazor::cuda {

enum class UnitKind : uint32_t { kPage, kRows, kWholeRowPage, kNothing };

/// Written by the producer before a stage is full.
struct StageInfo {
  const uint8_t* row_page;   // kWholeRowPage: this head's k rows
  uint32_t kind;
  uint32_t tokens;           // first | last << 16; of the page, or 0 | tokens of the rows
};

template <bool kRazor, int kDim, int kTiles>
struct CodecOf { using Type = RazorCodec<kDim, kTiles>; };
template <int kDim, int kTiles>
struct CodecOf<false, kDim, kTiles> { using Type = AffineCodec<kDim, kTiles>; };

template <bool kRazor, bool kRotate, int kDim, int kTiles>
struct AttendKernel {
  using Codec = typename CodecOf<kRazor, kDim, kTiles>::Type;
  using Page = typename Codec::Page;
  using State = RunningSoftmax<kDim, kTiles>;
  static constexpr int kRowUnitBytes = 2 * kRowUnit * kDim * 2;  // k and v
  static constexpr int kStageBytes = Page::kBytes > kRowUnitBytes ? Page::kBytes : kRowUnitBytes;
  static constexpr int kQueryBytes = Codec::kQueryBytes + kF16QueryBytes<kDim>;
  static constexpr int kScratchRow = kDim + 8;   // floats; the pad keeps the lanes' stores apart
  static constexpr int kRowSide = kTokens * kDim * 2;            // bytes of k in one head of a row page

  /// Shared memory, in this order; every part is a multiple of 16 bytes.
  struct Shared {
    uint8_t* ring;             // [num_stages][kStageBytes]
    StageInfo* info;           // [num_stages]
    uint8_t* q_rows;           // [kQuerySlots][gqa][D] f16
    uint8_t* q_fragments;      // [kQuerySlots][kQueryBytes]: sealed pages, then 16-bit rows
    float* scratch;            // [kConsumers][gqa][kScratchRow]
    float2* scratch_lse;       // [kConsumers][8]: maximum, sum
    float2* merge_weight;      // [8][kConsumers]: factor, factor * sum
    float* merge_top;          // [8]
    int32_t* arrival;          // [4]
    LineInfo* line;
    SequenceUnits* sequences;  // [batch_size]
    uint32_t full, empty, q_full, q_free, q_ready, q_empty, scratch_full, scratch_empty;  // barriers

    __device__ Shared(uint8_t* base, const AttendParams& a) {
      uint8_t* p = base;
      auto take = [&](int bytes) { uint8_t* at = p; p += RoundUp(bytes, 16); return at; };
      const uint32_t barriers = SharedAddress(take(kBarrierBytes));
      ring = base + RoundUp(kBarrierBytes, 128);
      p = ring;
      take(a.num_stages * kStageBytes);
      info = reinterpret_cast<StageInfo*>(take(a.num_stages * static_cast<int>(sizeof(StageInfo))));
      q_rows = take(kQuerySlots * a.gqa_ratio * kDim * 2);
      q_fragments = take(kQuerySlots * kQueryBytes);
      scratch = reinterpret_cast<float*>(take(kConsumers * a.gqa_ratio * kScratchRow * 4));
      scratch_lse = reinterpret_cast<float2*>(take(kConsumers * 8 * 8));
      merge_weight = reinterpret_cast<float2*>(take(kConsumers * 8 * 8));
      merge_top = reinterpret_cast<float*>(take(8 * 4));
      arrival = reinterpret_cast<int32_t*>(take(16));
      line = reinterpret_cast<LineInfo*>(take(sizeof(LineInfo)));
      sequences = reinterpret_cast<SequenceUnits*>(take(a.batch_size * static_cast<int>(sizeof(SequenceUnits))));
      full = barriers;
      empty = full + 8 * kMaxStages;
      q_full = empty + 8 * kMaxStages;
      q_free = q_full + 8 * kQuerySlots;
      q_ready = q_free + 8 * kQuerySlots;
      q_empty = q_ready + 8 * kQuerySlots;
      scratch_full = q_empty + 8 * kQuerySlots;
      scratch_empty = scratch_full + 8;
    }
  };

  static int SharedBytes(int num_stages, int gqa_ratio, int batch_size) {
    return RoundUp(kBarrierBytes, 128) + num_stages * (kStageBytes + static_cast<int>(sizeof(StageInfo))) +
           RoundUp(kQuerySlots * gqa_ratio * kDim * 2, 16) + RoundUp(kQuerySlots * kQueryBytes, 16) + kConsumers * gqa_ratio * kScratchRow * 4 +
           2 * kConsumers * 64 + 32 + 16 + RoundUp(static_cast<int>(sizeof(LineInfo)), 16) + batch_size * static_cast<int>(sizeof(SequenceUnits));
  }

  // ---- producer ----------------------------------------------------------------------------------------------------
  struct Unit {
    StageInfo info;
    const uint8_t* from;   // a page, or k rows
    int v_distance;        // bytes from k rows to v rows
  };

  /// Unit `u` of a tile.
  __device__ static Unit FindUnit(const AttendParams& a, const SequenceUnits& s, const Segment& segment, int u) {
    const int sinks = a.sink_tokens > 0;
    const int rest = u - s.num_pages - sinks;                         // units of the residual window before this one
    const bool in_window = rest >= 0;
    const bool is_sink = !in_window && u >= s.num_pages;
    const int page = is_sink ? 0 : in_window ? s.num_pages + rest / (kTokens / kRowUnit) : u;
    const int part = in_window ? rest % (kTokens / kRowUnit) : 0;
    const int32_t entry = __ldg(a.page_table + static_cast<int64_t>(segment.sequence) * a.table_stride + page);
    const int tokens = min(s.kv_len - page * kTokens, kTokens);       // of this page
    const int64_t head = segment.kv_head;
    Unit unit{{nullptr, static_cast<uint32_t>(UnitKind::kNothing), 0}, nullptr, kRowSide};
    if (is_sink) {
      if (IsRowPage(entry)) return unit;                              // the row page holds them too
      unit.info.kind = static_cast<uint32_t>(UnitKind::kRows);
      unit.info.tokens = static_cast<uint32_t>(min(a.sink_tokens, s.kv_len)) << 16;
      unit.v_distance = kRowUnitBytes / 2;
      unit.from = a.sink_rows + (segment.sequence * static_cast<int64_t>(a.num_kv_heads) + head) * kRowUnitBytes;
    } else if (IsRowPage(entry)) {
      const uint8_t* rows = a.row_pages + (static_cast<int64_t>(PageIndex(entry)) * a.num_kv_heads + head) * 2 * kRowSide;
      unit.info.kind = static_cast<uint32_t>(in_window ? UnitKind::kRows : UnitKind::kWholeRowPage);
      unit.info.row_page = rows;
      unit.info.tokens = static_cast<uint32_t>(in_window ? min(tokens - part * kRowUnit, kRowUnit) : tokens) << 16;
      unit.from = rows + part * kRowUnit * kDim * 2;
    } else if (part == 0) {                                           // sealed; in the window, its first part stands for all
      const int first = page == 0 ? a.sink_tokens : 0;
      if (first >= tokens) return unit;
      unit.info.kind = static_cast<uint32_t>(UnitKind::kPage);
      unit.info.tokens = static_cast<uint32_t>(first) | static_cast<uint32_t>(tokens) << 16;
      unit.from = a.packed_pages + (static_cast<int64_t>(entry) * a.num_kv_heads + head) * Page::kBytes;
    }
    return unit;
  }

  /// Brings `tokens` rows of k and of v (at most a unit); what stands behind them in the stage is left as it is.
  __device__ static void CopyRows(uint8_t* stage, const uint8_t* from, int v_distance, int tokens, uint32_t barrier, uint64_t policy) {
    const int bytes = min(tokens, kRowUnit) * kDim * 2;
    BarrierArriveExpect(barrier, 2 * bytes);
    BulkCopy(SharedAddress(stage), from, bytes, barrier, policy);
    BulkCopy(SharedAddress(stage) + kRowUnitBytes / 2, from + v_distance, bytes, barrier, policy);
  }

  __device__ static void Produce(const AttendParams& a, const Shared& sm) {
    const int lane = threadIdx.x & 31;
    const uint64_t policy = ReadOncePolicy();
    Walk walk(sm.sequences, *sm.line, a.num_kv_heads);
    Segment segment;
    int stage = 0;
    uint32_t parity = 1;
    for (int number = 0; walk.Next(segment); ++number) {
      const SequenceUnits s = sm.sequences[segment.sequence];
      Unit next = FindUnit(a, s, segment, segment.first_unit + min(lane, segment.num_units - 1));  // in flight while q is sent
      if (lane == 0) {
        const int slot = number % kQuerySlots;
        const int bytes = a.gqa_ratio * kDim * 2;
        BarrierWait(sm.q_free + 8 * slot, ((number / kQuerySlots) & 1) ^ 1);
        BarrierArriveExpect(sm.q_full + 8 * slot, bytes);
        BulkCopy(SharedAddress(sm.q_rows + slot * bytes), a.q + segment.sequence * a.q_stride + segment.kv_head * a.gqa_ratio * kDim, bytes,
                 sm.q_full + 8 * slot, policy);
      }
      for (int base = 0; base < segment.num_units; base += 32) {
        const Unit unit = next;
        if (base + 32 < segment.num_units) next = FindUnit(a, s, segment, segment.first_unit + min(base + 32 + lane, segment.num_units - 1));
        const int count = min(32, segment.num_units - base);
        for (int i = 0; i < count; ++i) {
          if (lane == i) {
            const uint32_t full = sm.full + 8 * stage;
            uint8_t* to = sm.ring + stage * kStageBytes;
            BarrierWait(sm.empty + 8 * stage, parity);
            sm.info[stage] = unit.info;
            if (unit.info.kind == static_cast<uint32_t>(UnitKind::kPage)) {
              BarrierArriveExpect(full, Page::kBytes);
              BulkCopy(SharedAddress(to), unit.from, Page::kBytes, full, policy);
            } else if (unit.info.kind == static_cast<uint32_t>(UnitKind::kNothing)) {
              BarrierArrive(full);
            } else {
              CopyRows(to, unit.from, unit.v_distance, unit.info.tokens >> 16, full, policy);
            }
          }
          __syncwarp();
          if (++stage == a.num_stages) {
            stage = 0;
            parity ^= 1;
          }
        }
      }
    }
  }

  // ---- consumers ---------------------------------------------------------------------------------------------------
  __device__ static void Consume(const AttendParams& a, const Shared& sm, int warp) {
    const int lane = threadIdx.x & 31, g = lane >> 2, qd = lane & 3;
    Walk walk(sm.sequences, *sm.line, a.num_kv_heads);
    Segment segment;
    int stage = warp;
    uint32_t parities = 0;   // bit i: parity of the next phase of stage warp + 8 i
    bool ends_in_part = false;
    Segment last_segment{};
    int turn = warp;         // the next unit of this warp, counted from the start of the segment
    for (int number = 0; walk.Next(segment); ++number) {
      const int slot = number % kQuerySlots;
      const uint8_t* fragments = sm.q_fragments + slot * kQueryBytes;
      const uint2* row_fragments = reinterpret_cast<const uint2*>(fragments + Codec::kQueryBytes);
      BarrierWait(sm.q_ready + 8 * slot, (number / kQuerySlots) & 1);
      typename Codec::Query query;
      if constexpr (kRazor) {
        Codec::LoadQuery(fragments, query);
      } else {
        Codec::LoadQuery(fragments, a.scale_log2, query);
      }
      State state;
      state.Clear();
      bool rotated = kRotate;
      for (; turn < segment.num_units; turn += kConsumers) {
        const uint32_t full = sm.full + 8 * stage;
        const uint32_t bit = 1u << (stage / kConsumers);
        uint8_t* at = sm.ring + stage * kStageBytes;
        BarrierWait(full, (parities & bit) != 0);
        parities ^= bit;
        const StageInfo info = sm.info[stage];
        const UnitKind kind = static_cast<UnitKind>(info.kind);
        const int first = info.tokens & 0xffff, last = info.tokens >> 16;
        if (kRotate && kind != UnitKind::kNothing && rotated != (kind == UnitKind::kPage)) {
          state.Rotate();
          rotated = !rotated;
        }
        if (kind == UnitKind::kPage) {
          Codec::AttendPage(at, query, first, last, state);
        } else if (kind != UnitKind::kNothing) {
          for (int done = 0;;) {
            AttendRows<kDim, kTiles>(at, row_fragments, a.scale_log2, min(last - done, kRowUnit), state);
            done += kRowUnit;
            if (kind == UnitKind::kRows || done >= last) break;
            __syncwarp();  // a row page outside the window: this warp fetches the other parts itself
            if (lane == 0) CopyRows(at, info.row_page + done * kDim * 2, kRowSide, last - done, full, ReadOncePolicy());
            BarrierWait(full, (parities & bit) != 0);
            parities ^= bit;
          }
        }
        WarpArrive(sm.empty + 8 * stage);
        stage += kConsumers;
        if (stage >= a.num_stages) stage -= a.num_stages;
      }
      turn -= segment.num_units;
      WarpArrive(sm.q_empty + 8 * slot);
      if (kRotate && rotated) state.Rotate();

      BarrierWait(sm.scratch_empty, (number & 1) ^ 1);
#pragma unroll
      for (int n = 0; n < kTiles; ++n) {
#pragma unroll
        for (int o = 4; o < 32; o <<= 1) state.sum[n] += __shfl_xor_sync(~0u, state.sum[n], o);
        const int head = qd + 4 * n;
        if (head < a.gqa_ratio) {
          float* to = sm.scratch + (warp * a.gqa_ratio + head) * kScratchRow + g;
#pragma unroll
          for (int i = 0; i < kDim / 8; ++i) to[8 * i] = state.out[n][i];
          if (g == 0) sm.scratch_lse[warp * 8 + head] = make_float2(state.top[n], state.sum[n]);
        }
      }
      WarpArrive(sm.scratch_full);
      ends_in_part = segment.num_units != segment.tile_units;
      last_segment = segment;
    }
    if (ends_in_part) {
      NamedBarrier<2, (kConsumers + kMergers) * 32>();
      if (sm.arrival[0]) MergePartsAtEnd(a, sm, last_segment, static_cast<int>(threadIdx.x));
    }
  }

  // ---- mergers -----------------------------------------------------------------------------------------------------
  /// q of the numbered segment to operand fragments; one warp a head tile.
  __device__ static void PrepareQuery(const AttendParams& a, const Shared& sm, int number, int warp) {
    if (warp >= (kRazor ? kTiles : 1)) return;
    const int lane = threadIdx.x & 31, g = lane >> 2, qd = lane & 3;
    const int slot = number % kQuerySlots;
    const uint8_t* rows = sm.q_rows + slot * a.gqa_ratio * kDim * 2;
    uint8_t* fragments = sm.q_fragments + slot * kQueryBytes;
    BarrierWait(sm.q_full + 8 * slot, (number / kQuerySlots) & 1);
    BarrierWait(sm.q_empty + 8 * slot, ((number / kQuerySlots) & 1) ^ 1);

    // Channels 16 i + 4 qd + e of one head: for int8 operands of head g / 2 (+ 4 a tile), for f16 operands of the head in column g.
    const int column_head = kTiles == 2 ? (g >> 1) + 4 * (g & 1) : (g & 1) ? 8 : g >> 1;
    const int head = kRazor ? (g >> 1) + 4 * warp : column_head;
    float x[kDim / 4];
#pragma unroll
    for (int i = 0; i < kDim / 16; ++i) {
      uint2 w = make_uint2(0, 0);
      if (head < a.gqa_ratio) w = *reinterpret_cast<const uint2*>(rows + (head * kDim + 16 * i + 4 * qd) * 2);
      x[4 * i] = LowF16(w.x);
      x[4 * i + 1] = HighF16(w.x);
      x[4 * i + 2] = LowF16(w.y);
      x[4 * i + 3] = HighF16(w.y);
    }
    if (warp == 0) {  // f16 fragments in the model's basis
      uint2* to = reinterpret_cast<uint2*>(fragments + Codec::kQueryBytes);
#pragma unroll
      for (int kt = 0; kt < kDim / 16; ++kt) {
        uint2 w = make_uint2(0, 0);
        if (column_head < a.gqa_ratio) {
          const uint8_t* row = rows + (column_head * kDim + 16 * kt + 2 * qd) * 2;
          w = make_uint2(*reinterpret_cast<const uint32_t*>(row), *reinterpret_cast<const uint32_t*>(row + 16));
        }
        to[kt * 32 + lane] = w;
      }
    }
    WarpArrive(sm.q_free + 8 * slot);

    if constexpr (kRotate) RotateQuery(x, qd);
    if constexpr (kRazor) {
      Codec::StoreQuery(fragments, warp, x, a.scale_log2);
    } else if (warp == 0) {
      // The lane's channels 16 kt + 4 qd + e belong to the lanes (g, 2 qd mod 4 ..) of the fragment: exchange through shared memory.
      uint32_t* to = reinterpret_cast<uint32_t*>(fragments);
#pragma unroll
      for (int kt = 0; kt < kDim / 16; ++kt) {
#pragma unroll
        for (int pair = 0; pair < 2; ++pair) {
          const int p = 2 * qd + pair;  // pair of channels 2 p, 2 p + 1 of the 16: lane q = p % 4, register p / 4
          to[(kt * 32 + 4 * g + p % 4) * 2 + p / 4] = PackF16(x[4 * kt + 2 * pair], x[4 * kt + 2 * pair + 1]);
        }
      }
    }
    WarpArrive(sm.q_ready + 8 * slot);
  }

  /// x <- H x over channels 16 i + 4 qd + e = x[4 i + e]: bits 0, 1 and 4 up in registers, bits 2 and 3 across four lanes.
  __device__ static void RotateQuery(float (&x)[kDim / 4], int qd) {
#pragma unroll
    for (int o = 1; o < kDim / 4; o <<= 1) {
#pragma unroll
      for (int i = 0; i < kDim / 4; ++i) {
        if (i & o) continue;
        const float u = x[i], w = x[i | o];
        x[i] = u + w;
        x[i | o] = u - w;
      }
    }
#pragma unroll
    for (int o = 1; o < 4; o <<= 1) {
      const float sign = (qd & o) ? -1.f : 1.f;
#pragma unroll
      for (int i = 0; i < kDim / 4; ++i) x[i] = fmaf(sign, x[i], __shfl_xor_sync(~0u, x[i], o));
    }
    constexpr float kNorm = kDim == 64 ? 0.125f : 0.08838834764831845f;
#pragma unroll
    for (int i = 0; i < kDim / 4; ++i) x[i] *= kNorm;
  }

  __device__ static void StoreResult(const AttendParams& a, const Segment& segment, int head, int channel, float top, float sum, const float4& o) {
    const float inverse = sum > 0 ? 1.f / sum : 0.f;
    const int qo_head = segment.kv_head * a.gqa_ratio + head;
    uint16_t* to = a.out + segment.sequence * a.out_stride + qo_head * kDim + channel;
    *reinterpret_cast<uint2*>(to) = make_uint2(PackF16(o.x * inverse, o.y * inverse), PackF16(o.z * inverse, o.w * inverse));
    if (a.lse && channel == 0) {
      constexpr float kLn2 = 0.6931471805599453f;
      a.lse[static_cast<int64_t>(segment.sequence) * a.num_kv_heads * a.gqa_ratio + qo_head] = sum > 0 ? (top + log2f(sum)) * kLn2 : -INFINITY;
    }
  }

  /// A running sum of partial results for four channels of one head.
  struct Part {
    float top = kNoLogit, sum = 0;
    float4 out = {0, 0, 0, 0};

    __device__ void Rescale(float higher) {
      const float factor = Exp2(top - higher);
      top = higher;
      sum *= factor;
      out = make_float4(out.x * factor, out.y * factor, out.z * factor, out.w * factor);
    }
    __device__ void Add(float other_top, float other_sum, const float4& o) {  // other_top <= top
      const float w = Exp2(other_top - top);
      sum = fmaf(w, other_sum, sum);
      out = make_float4(fmaf(w, o.x, out.x), fmaf(w, o.y, out.y), fmaf(w, o.z, out.z), fmaf(w, o.w, out.w));
    }
  };

  /// Parts `group`, group + kMergeGroups, ... of a tile.
  __device__ static Part ReadParts(const AttendParams& a, int first_cta, int num_parts, int head, int channel, int group) {
    constexpr int kDeep = 9;  // in flight; a tile over all 132 multiprocessors of 8 heads has 17 parts
    Part total;
    for (int base = group; base < num_parts; base += kDeep * kMergeGroups) {
      float2 lse[kDeep];
      float4 part[kDeep];
      float higher = total.top;
#pragma unroll
      for (int i = 0; i < kDeep; ++i) {
        const int k = base + i * kMergeGroups;
        lse[i] = make_float2(kNoLogit, 0);
        part[i] = make_float4(0, 0, 0, 0);
        if (k < num_parts) {
          const int64_t at = (static_cast<int64_t>(k == 0) * gridDim.x + first_cta + k) * 8 + head;
          lse[i] = __ldcg(reinterpret_cast<const float2*>(a.partial_lse) + at);
          part[i] = __ldcg(reinterpret_cast<const float4*>(a.partial_out + at * kDim + channel));
        }
      }
#pragma unroll
      for (int i = 0; i < kDeep; ++i) higher = fmaxf(higher, lse[i].x);
      total.Rescale(higher);
#pragma unroll
      for (int i = 0; i < kDeep; ++i) total.Add(lse[i].x, lse[i].y, part[i]);
    }
    return total;
  }

  /// The groups joined in their order: the same arithmetic whoever merges.
  __device__ static void StoreGroups(const AttendParams& a, const Segment& segment, int head, int channel, const Part (&groups)[kMergeGroups]) {
    Part total;
    float higher = kNoLogit;
#pragma unroll
    for (int i = 0; i < kMergeGroups; ++i) higher = fmaxf(higher, groups[i].top);
    total.Rescale(higher);
#pragma unroll
    for (int i = 0; i < kMergeGroups; ++i) total.Add(groups[i].top, groups[i].sum, groups[i].out);
    StoreResult(a, segment, head, channel, total.top, total.sum, total.out);
  }

  /// By the mergers, while the consumers work on.
  __device__ static void MergeParts(const AttendParams& a, const Segment& segment, int first_cta, int num_parts, int thread) {
    for (int x = thread; x < a.gqa_ratio * (kDim / 4); x += kMergers * 32) {
      const int head = x / (kDim / 4), channel = x % (kDim / 4) * 4;
      Part groups[kMergeGroups];
#pragma unroll
      for (int i = 0; i < kMergeGroups; ++i) groups[i] = ReadParts(a, first_cta, num_parts, head, channel, i);
      StoreGroups(a, segment, head, channel, groups);
    }
  }

  /// By the consumers, which have nothing left to do: a group a thread, joined through the scratch.
  __device__ static void MergePartsAtEnd(const AttendParams& a, const Shared& sm, const Segment& segment, int thread) {
    const int first_cta = sm.arrival[1], num_parts = sm.arrival[2];
    const int items = a.gqa_ratio * (kDim / 4);
    float* exchange = sm.scratch;  // [groups - 1][items][8]; groups * items * 32 bytes fit in the scratch
    for (int x = thread; x < items * kMergeGroups; x += kConsumers * 32) {
      const int item = x % items, group = x / items;
      const Part p = ReadParts(a, first_cta, num_parts, item / (kDim / 4), item % (kDim / 4) * 4, group);
      *reinterpret_cast<float4*>(exchange + x * 8) = p.out;
      *reinterpret_cast<float2*>(exchange + x * 8 + 4) = make_float2(p.top, p.sum);
    }
    NamedBarrier<3, kConsumers * 32>();
    for (int item = thread; item < items; item += kConsumers * 32) {
      Part groups[kMergeGroups];
#pragma unroll
      for (int i = 0; i < kMergeGroups; ++i) {
        const float* from = exchange + (i * items + item) * 8;
        const float2 lse = *reinterpret_cast<const float2*>(from + 4);
        groups[i].out = *reinterpret_cast<const float4*>(from);
        groups[i].top = lse.x;
        groups[i].sum = lse.y;
      }
      StoreGroups(a, segment, item / (kDim / 4), item % (kDim / 4) * 4, groups);
    }
  }

  /// The states of the consumers in the scratch to the result or to a partial.
  __device__ static void MergeSegment(const AttendParams& a, const Shared& sm, const Segment& segment, bool is_last_segment, int thread) {
    for (int x = thread; x < kConsumers * a.gqa_ratio; x += kMergers * 32) {
      const int head = x / kConsumers, warp = x % kConsumers;
      float top = kNoLogit;
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) top = fmaxf(top, sm.scratch_lse[i * 8 + head].x);
      const float2 lse = sm.scratch_lse[warp * 8 + head];
      const float factor = Exp2(lse.x - top);
      sm.merge_weight[head * kConsumers + warp] = make_float2(factor, factor * lse.y);
      if (warp == 0) sm.merge_top[head] = top;
    }
    NamedBarrier<1, kMergers * 32>();
    const bool whole = segment.num_units == segment.tile_units;
    for (int x = thread; x < a.gqa_ratio * (kDim / 4); x += kMergers * 32) {
      const int head = x / (kDim / 4), channel = x % (kDim / 4) * 4;
      float sum = 0;
      float4 out = make_float4(0, 0, 0, 0);
#pragma unroll
      for (int i = 0; i < kConsumers; ++i) {
        const float2 w = sm.merge_weight[head * kConsumers + i];
        const float4 v = *reinterpret_cast<const float4*>(sm.scratch + (i * a.gqa_ratio + head) * kScratchRow + channel);
        sum += w.y;
        out = make_float4(fmaf(w.x, v.x, out.x), fmaf(w.x, v.y, out.y), fmaf(w.x, v.z, out.z), fmaf(w.x, v.w, out.w));
      }
      const float top = sm.merge_top[head];
      if (whole) {
        StoreResult(a, segment, head, channel, top, sum, out);
      } else {
        const int64_t at = (static_cast<int64_t>(segment.first_unit == 0) * gridDim.x + blockIdx.x) * 8 + head;
        __stcg(reinterpret_cast<float4*>(a.partial_out + at * kDim + channel), out);
        if (channel == 0) __stcg(reinterpret_cast<float2*>(a.partial_lse) + at, make_float2(top, sum));
      }
    }
    WarpArrive(sm.scratch_empty);
    NamedBarrier<1, kMergers * 32>();
    if (whole) return;

    const int first_cta = CtaOf(*sm.line, segment.tile_at + 1);
    const int num_parts = CtaOf(*sm.line, segment.tile_at + segment.tile_units) - first_cta + 1;
    if (thread == 0) {
      int32_t* arrivals = a.arrivals + segment.sequence * a.num_kv_heads + segment.kv_head;
      const bool last = AddAcquireRelease(arrivals, 1) == num_parts - 1;
      if (last) *arrivals = 0;
      sm.arrival[0] = last;
      sm.arrival[1] = first_cta;
      sm.arrival[2] = num_parts;
    }
    NamedBarrier<1, kMergers * 32>();
    if (is_last_segment) {
      NamedBarrierArrive<2, (kConsumers + kMergers) * 32>();  // the consumers do it
    } else if (sm.arrival[0]) {
      MergeParts(a, segment, first_cta, num_parts, thread);
    }
    NamedBarrier<1, kMergers * 32>();
  }

  /// Sequences without a token: result 0, lse -inf.
  __device__ static void StoreEmpty(const AttendParams& a, const Shared& sm, int thread) {
    const int heads = a.num_kv_heads * a.gqa_ratio;
    for (int b = blockIdx.x; b < a.batch_size; b += gridDim.x) {
      if (sm.sequences[b].weight != 0) continue;
      for (int i = thread; i < heads * kDim / 4; i += kMergers * 32) *reinterpret_cast<uint2*>(a.out + b * a.out_stride + 4 * i) = make_uint2(0, 0);
      if (!a.lse) continue;
      for (int i = thread; i < heads; i += kMergers * 32) a.lse[static_cast<int64_t>(b) * heads + i] = -INFINITY;
    }
  }

  __device__ static void Merge(const AttendParams& a, const Shared& sm, int warp, int thread) {
    Walk walk(sm.sequences, *sm.line, a.num_kv_heads);
    Segment next;
    bool more = walk.Next(next);
    if (more) PrepareQuery(a, sm, 0, warp);
    for (int number = 0; more; ++number) {
      const Segment segment = next;
      more = walk.Next(next);
      if (more) PrepareQuery(a, sm, number + 1, warp);
      BarrierWait(sm.scratch_full, number & 1);
      MergeSegment(a, sm, segment, !more, thread);
    }
    StoreEmpty(a, sm, thread);
  }

  __device__ static void Run(const AttendParams& a) {
    extern __shared__ __align__(128) uint8_t shared[];
    const Shared sm(shared, a);
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    LetNextKernelStart();
    if (warp == 1) {
      for (int i = lane; i < a.num_stages; i += 32) {
        BarrierInit(sm.full + 8 * i, 1);
        BarrierInit(sm.empty + 8 * i, kArrivalsPerWarp);
      }
      constexpr int kQueryWarps = kRazor ? kTiles : 1;
      if (lane < kQuerySlots) {
        BarrierInit(sm.q_full + 8 * lane, 1);
        BarrierInit(sm.q_free + 8 * lane, kQueryWarps * kArrivalsPerWarp);
        BarrierInit(sm.q_ready + 8 * lane, kQueryWarps * kArrivalsPerWarp);
        BarrierInit(sm.q_empty + 8 * lane, kConsumers * kArrivalsPerWarp);
      }
      if (lane == 0) {
        BarrierInit(sm.scratch_full, kConsumers * kArrivalsPerWarp);
        BarrierInit(sm.scratch_empty, kMergers * kArrivalsPerWarp);
      }
      FenceAsyncProxy();
    }
    WaitForLastKernel();  // nothing in global memory is touched before this line
    if (warp == 0) MakeSchedule(a, sm.sequences, sm.line, lane);
    __syncthreads();
    if (warp < kConsumers) {
      Consume(a, sm, warp);
    } else if (warp == kConsumers) {
      Produce(a, sm);
    } else {
      Merge(a, sm, warp - kConsumers - 1, static_cast<int>(threadIdx.x) - (kConsumers + 1) * 32);
    }
  }
};

template <bool kRazor, bool kRotate, int kDim, int kTiles>
__global__ __launch_bounds__(kAttendThreads, 1) void Attend(const __grid_constant__ AttendParams params) {
  AttendKernel<kRazor, kRotate, kDim, kTiles>::Run(params);
}

}  // namespace kvrazor::cuda
