// The consumer warps: logits, softmax and weighted values of one unit a team at a time; a running state a warp, handed to the mergers
// at the end of a segment. Sealed pages are summed in the rotated basis and 16-bit rows in the model's; a consumer rotates its state
// when it passes from one to the other, and hands it over in whichever it is.
#pragma once

#include "src/backends/cuda/attend_config.cuh"
#include "src/backends/cuda/attend_merge.cuh"
#include "src/backends/cuda/row_unit.cuh"
#include "src/backends/cuda/visibility.cuh"

namespace kvrazor::cuda {

template <class Config>
struct AttendConsumer {
  using Shared = typename Config::Shared;
  using Codec = typename Config::Codec;
  using State = typename Config::State;
  static constexpr int kDim = Config::kDim, kTiles = Config::kTiles;

  /// What a warp has summed so far counts in: nothing yet, the pages' basis and units, or the model's.
  enum class Basis { kNone, kPages, kModel };

  __device__ static void Enter(State& state, Basis& basis, Basis wanted) {
    if (basis != wanted && basis != Basis::kNone) {
      if (wanted == Basis::kModel) state.LeavePages();
      if constexpr (Config::kRotate) state.Rotate();
      if (wanted == Basis::kPages) state.EnterPages();
    }
    basis = wanted;
  }

  /// 16-bit rows, by one warp of the team.
  __device__ static void TakeRows(const AttendParams& a, const Shared& sm, uint8_t* at, const uint2* fragments, StageVisible<kTiles> visible, int warp,
                                  uint32_t& refill_parity, State& state) {
    const StageInfo& info = *visible.unit;
    const int tokens = static_cast<int>(info.tokens >> 16);
    for (;;) {
      AttendRows<kDim, kTiles>(a, at, fragments, min(tokens - visible.done, kRowUnit), visible, state);
      visible.done += kRowUnit;
      if (info.kind == UnitKind::kRows || visible.done >= tokens) return;
      __syncwarp();  // a row page outside the window: this warp fetches the other parts itself
      const uint32_t refill = sm.refill + 8 * warp;
      if ((threadIdx.x & 31) == 0) {
        Config::CopyRows(at, info.row_page + visible.done * kDim * 2, Config::kRowSide, tokens - visible.done, refill, ReadOncePolicy());
      }
      BarrierWait(refill, refill_parity);
      refill_parity ^= 1;
    }
  }

  __device__ static void HandOver(const AttendParams& a, const Shared& sm, int warp, Basis basis, State& state) {
    const int lane = threadIdx.x & 31, g = lane >> 2, qd = lane & 3;
    if (basis == Basis::kPages) state.LeavePages();
    if (lane == 0) sm.scratch_rotated[warp] = basis != Basis::kModel;
#pragma unroll
    for (int n = 0; n < kTiles; ++n) {
#pragma unroll
      for (int o = 4; o < 32; o <<= 1) state.sum[n] += __shfl_xor_sync(~0u, state.sum[n], o);
      const int row = qd + 4 * n;
      if (row < a.block_rows) {
        float* to = sm.scratch + (warp * a.block_rows + row) * Config::kScratchRow + g;
#pragma unroll
        for (int i = 0; i < kDim / 8; ++i) to[8 * i] = state.out[n][i];
        if (g == 0) sm.scratch_lse[warp * kBlockRows + row] = make_float2(state.top[n], state.sum[n]);
      }
    }
  }

  __device__ static void Run(const AttendParams& a, const Shared& sm, int warp) {
    const int team = warp / Config::kTeamWarps, part = warp % Config::kTeamWarps;
    RingCursor cursor{team};
    uint32_t refill_parity = 0;
    int turn = team;  // the team's next unit, counted from the start of the segment
    int round = 0;    // of the team's units; says which warp takes rows
    for (int number = 0;; ++number) {
      const int slot = number % kQuerySlots;
      const uint8_t* fragments = sm.q_fragments + slot * Config::kQueryBytes;
      const uint2* row_fragments = reinterpret_cast<const uint2*>(fragments + Codec::kQueryBytes);
      const SegmentInfo& segment = sm.segments[slot];
      BarrierWait(sm.q_ready + 8 * slot, (number / kQuerySlots) & 1);
      const int num_units = segment.segment.num_units;
      if (num_units == 0) return;
      typename Codec::Query query;
      Codec::LoadQuery(fragments, query);
      State state;
      state.Clear();
      Basis basis = Basis::kNone;
      for (; turn < num_units; turn += Config::kTeams, ++round) {
        BarrierWait(sm.full + 8 * cursor.FullBarrier(), cursor.FullParity());
        const StageInfo& info = sm.info[cursor.stage];
        uint8_t* at = sm.ring + cursor.stage * Config::kStageBytes;
        const UnitKind kind = info.kind;
        const StageVisible<kTiles> visible{info.plain != 0, &info, &segment};
        const bool takes = kind == UnitKind::kPage || (kind != UnitKind::kNothing && round % Config::kTeamWarps == part);
        if (takes) Enter(state, basis, kind == UnitKind::kPage ? Basis::kPages : Basis::kModel);
        if (kind == UnitKind::kPage) {
          Codec::AttendPage(a, at, part, query, visible, state);
        } else if (takes) {
          TakeRows(a, sm, at, row_fragments, visible, warp, refill_parity, state);
        }
        WarpArrive(sm.empty + 8 * cursor.stage);
        cursor.Advance(Config::kTeams, a.num_stages);
      }
      turn -= num_units;
      const bool is_last = segment.is_last;
      WarpArrive(sm.q_empty + 8 * slot);
      BarrierWait(sm.scratch_empty, (number & 1) ^ 1);
      HandOver(a, sm, warp, basis, state);
      if (is_last) {  // nothing is left to do: the consumers merge it themselves
        NamedBarrier<kMergeBarrier, Config::kConsumers * 32>();
        AttendMerge<Config>::MergeStates(a, sm, segment.segment, warp, Config::kConsumers);
        return;
      }
      WarpArrive(sm.scratch_full);
    }
  }
};

}  // namespace kvrazor::cuda
