// The producer warp: walks the segments, reads the page table, brings one unit a stage (bulk copies) into the ring.
#pragma once

#include "src/backends/cuda/attend_config.cuh"
#include "src/backends/cuda/visibility.cuh"

namespace kvrazor::cuda {

template <class Config>
struct AttendProducer {
  using Shared = typename Config::Shared;
  using Page = typename Config::Page;
  static constexpr int kDim = Config::kDim;

  struct Unit {
    StageInfo info;
    const uint8_t* from;  // a page, or k rows
    int v_distance;       // bytes from k rows to v rows
  };

  /// No query row sees a token of [begin, end): every value of the mask is -inf.
  __device__ static bool IsMasked(const AttendParams& a, int sequence, int begin, int end) {
    const uint16_t* row = a.mask + static_cast<int64_t>(sequence) * a.qo_len * a.mask_stride;
    constexpr uint32_t kInfinity = 0xfc00;  // f16 -inf
#pragma unroll 1
    for (int i = 0; i < a.qo_len; ++i, row += a.mask_stride) {
      int t = begin & ~7;  // 16-byte reads; what they add in front makes the answer no worse than cautious
#pragma unroll 1
      for (; t + 8 <= end; t += 8) {
        const uint4 w = __ldg(reinterpret_cast<const uint4*>(row + t));
        if ((w.x & w.y & w.z & w.w) != kInfinity * 0x10001u || (w.x | w.y | w.z | w.w) != kInfinity * 0x10001u) return false;
      }
#pragma unroll 1
      for (; t < end; ++t) {
        if (__ldg(row + t) != kInfinity) return false;
      }
    }
    return true;
  }

  /// Where unit `u` of a tile lies, and its entry of the page table.
  struct Place {
    bool in_window, is_sink;
    int page, part;  // part: 16 tokens of a page in the residual window
    int32_t entry;
  };
  __device__ static Place FindPlace(const AttendParams& a, const SequenceUnits& s, const Segment& segment, int u) {
    const int rest = u - s.num_pages - (a.sink_tokens > 0);  // units of the residual window before this one
    Place p;
    p.in_window = rest >= 0;
    p.is_sink = !p.in_window && u >= s.num_pages;
    p.page = p.is_sink ? 0 : s.first_page + (p.in_window ? s.num_pages + rest / (kTokens / kRowUnit) : u);
    p.part = p.in_window ? rest % (kTokens / kRowUnit) : 0;
    p.entry = __ldg(a.page_table + static_cast<int64_t>(segment.sequence) * a.table_stride + p.page);
    return p;
  }

  __device__ static Unit FindUnit(const AttendParams& a, const SequenceUnits& s, const Segment& segment, const Place& place) {
    const auto [in_window, is_sink, page, part, entry] = place;
    const int tokens = min(s.kv_len - page * kTokens, kTokens);  // of this page
    const int64_t head = segment.kv_head;
    Unit unit{{nullptr, UnitKind::kNothing, 0, page * kTokens, 0}, nullptr, Config::kRowSide};
    int first = 0, last = tokens;
    if (is_sink) {
      if (IsRowPage(entry)) return unit;  // the row page holds them too
      last = min(a.sink_tokens, s.kv_len);
      unit.info.kind = UnitKind::kRows;
      unit.v_distance = Config::kRowUnitBytes / 2;
      unit.from = a.sink_rows + (segment.sequence * static_cast<int64_t>(a.num_kv_heads) + head) * Config::kRowUnitBytes;
    } else if (IsRowPage(entry)) {
      const uint8_t* rows = a.row_pages + (static_cast<int64_t>(PageIndex(entry)) * a.num_kv_heads + head) * 2 * Config::kRowSide;
      unit.info.kind = in_window ? UnitKind::kRows : UnitKind::kWholeRowPage;
      unit.info.row_page = rows;
      unit.info.base += part * kRowUnit;
      if (in_window) last = min(tokens - part * kRowUnit, kRowUnit);
      unit.from = rows + part * kRowUnit * kDim * 2;
    } else {
      if (part > 0) return unit;  // sealed; in the window, its first part stands for all
      first = page == 0 ? a.sink_tokens : 0;
      unit.info.kind = UnitKind::kPage;
      unit.from = a.packed_pages + (static_cast<int64_t>(entry) * a.num_kv_heads + head) * Page::kBytes;
    }
    const int least_end = VisibleEnd(a, s.kv_len, 0), most_begin = VisibleBegin(a, VisibleEnd(a, s.kv_len, a.qo_len - 1));
    const int base = unit.info.base;
    const bool hidden = first >= last || base + last <= VisibleBegin(a, least_end) || (a.mask && IsMasked(a, segment.sequence, base + first, base + last));
    if (hidden) {
      unit.info.kind = UnitKind::kNothing;
      return unit;
    }
    const int whole = unit.info.kind == UnitKind::kPage ? kTokens : last;
    unit.info.plain = first == 0 && last == whole && base >= most_begin && base + last <= least_end && !a.mask && !(a.softcap_log2 > 0);
    unit.info.tokens = static_cast<uint32_t>(first) | static_cast<uint32_t>(last) << 16;
    return unit;
  }

  /// Into the stage of the cursor, which is empty; by one lane.
  __device__ static void Send(const Shared& sm, const Unit& unit, const RingCursor& at, uint64_t policy) {
    const uint32_t full = sm.full + 8 * at.FullBarrier();
    uint8_t* to = sm.ring + at.stage * Config::kStageBytes;
    sm.info[at.stage] = unit.info;
    if (unit.info.kind == UnitKind::kPage) {
      BarrierArriveExpect(full, Page::kBytes);
      BulkCopy(SharedAddress(to), unit.from, Page::kBytes, full, policy);
    } else if (unit.info.kind == UnitKind::kNothing) {
      BarrierArrive(full);
    } else {
      Config::CopyRows(to, unit.from, unit.v_distance, unit.info.tokens >> 16, full, policy);
    }
  }

  __device__ static void Run(const AttendParams& a, const Shared& sm) {
    const int lane = threadIdx.x & 31;
    const uint64_t policy = ReadOncePolicy();
    Walk walk(sm.sequences, *sm.line, a);
    Segment segment;
    RingCursor cursor;
    while (walk.Next(segment)) {
      const SequenceUnits s = sm.sequences[segment.sequence];
      const auto place = [&](int u) { return FindPlace(a, s, segment, segment.first_unit + min(u + lane, segment.num_units - 1)); };
      Place next = place(0);
      for (int base = 0; base < segment.num_units; base += 32) {
        const Unit unit = FindUnit(a, s, segment, next);
        if (base + 32 < segment.num_units) next = place(base + 32);
        const int count = min(32, segment.num_units - base);
        for (int i = 0; i < count;) {  // as many at once as there are free stages in a row
          const int ahead = lane - i;
          const bool mine = ahead >= 0 && ahead < a.num_stages && lane < count;
          RingCursor own = cursor;
          if (mine) own.Advance(ahead, a.num_stages);
          const uint32_t empty = sm.empty + 8 * own.stage;
          if (ahead == 0) BarrierWait(empty, own.EmptyParity());
          const uint32_t ready = __ballot_sync(~0u, mine && BarrierTest(empty, own.EmptyParity())) >> i;
          const int at_once = __clz(__brev(~ready));
          if (mine && ahead < at_once) Send(sm, unit, own, policy);
          __syncwarp();
          cursor.Advance(at_once, a.num_stages);
          i += at_once;
        }
      }
    }
  }
};

}  // namespace kvrazor::cuda
