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

  struct StageCursor {
    int stage;
    uint32_t parity = 0;  // of the next phase of this stage

    __device__ void Next(int num_stages) {
      stage += Config::kTeams;
      if (stage >= num_stages) {
        stage -= num_stages;
        parity ^= 1;
      }
    }
  };

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
  __device__ static void TakeRows(const AttendParams& a, const Shared& sm, uint8_t* at, const StageInfo& info, const uint2* fragments,
                                  Visible<kTiles> visible, int warp, uint32_t& refill_parity, State& state) {
    const int tokens = info.tokens >> 16;
    for (int done = 0;;) {
      visible.last = min(tokens - done, kRowUnit);
      AttendRows<kDim, kTiles>(a, at, fragments, visible.last, visible, state);
      done += kRowUnit;
      if (info.kind == UnitKind::kRows || done >= tokens) return;
      __syncwarp();  // a row page outside the window: this warp fetches the other parts itself
      const uint32_t refill = sm.refill + 8 * warp;
      if ((threadIdx.x & 31) == 0) Config::CopyRows(at, info.row_page + done * kDim * 2, Config::kRowSide, tokens - done, refill, ReadOncePolicy());
      BarrierWait(refill, refill_parity);
      refill_parity ^= 1;
      visible.base += kRowUnit;
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

  /// Returns how many segments there were; `segment` is the last of them.
  __device__ static int Run(const AttendParams& a, const Shared& sm, int warp, Segment& segment) {
    const int part = warp % Config::kTeamWarps;
    Walk walk(sm.sequences, *sm.line, a);
    StageCursor cursor{warp / Config::kTeamWarps};
    uint32_t refill_parity = 0;
    int turn = cursor.stage;  // the team's next unit, counted from the start of the segment
    int round = 0;            // of the team's units; says which warp takes rows
    int number = 0;
    while (walk.Next(segment)) {
      const int slot = number % kQuerySlots;
      const uint8_t* fragments = sm.q_fragments + slot * Config::kQueryBytes;
      const uint2* row_fragments = reinterpret_cast<const uint2*>(fragments + Codec::kQueryBytes);
      const int kv_len = sm.sequences[segment.sequence].kv_len;
      BarrierWait(sm.q_ready + 8 * slot, (number / kQuerySlots) & 1);
      typename Codec::Query query;
      Codec::LoadQuery(fragments, query);
      State state;
      state.Clear();
      Basis basis = Basis::kNone;
      for (; turn < segment.num_units; turn += Config::kTeams, ++round) {
        BarrierWait(sm.full + 8 * cursor.stage, cursor.parity);
        const StageInfo info = sm.info[cursor.stage];
        uint8_t* at = sm.ring + cursor.stage * Config::kStageBytes;
        const Visible<kTiles> visible{info.plain != 0, info.base, static_cast<int>(info.tokens & 0xffff), static_cast<int>(info.tokens >> 16),
                                      kv_len, &segment};
        const bool takes = info.kind == UnitKind::kPage || (info.kind != UnitKind::kNothing && round % Config::kTeamWarps == part);
        if (takes) Enter(state, basis, info.kind == UnitKind::kPage ? Basis::kPages : Basis::kModel);
        if (info.kind == UnitKind::kPage) {
          Codec::AttendPage(a, at, part, query, visible, state);
        } else if (takes) {
          TakeRows(a, sm, at, info, row_fragments, visible, warp, refill_parity, state);
        }
        WarpArrive(sm.empty + 8 * cursor.stage);
        cursor.Next(a.num_stages);
      }
      turn -= segment.num_units;
      WarpArrive(sm.q_empty + 8 * slot);
      BarrierWait(sm.scratch_empty, (number & 1) ^ 1);
      HandOver(a, sm, warp, basis, state);
      ++number;
      if (walk.IsLast()) {  // nothing is left to do: the consumers merge it themselves
        NamedBarrier<2, Config::kConsumers * 32>();
        AttendMerge<Config>::MergeStates(a, sm, segment, warp, Config::kConsumers);
        break;
      }
      WarpArrive(sm.scratch_full);
    }
    return number;
  }
};

}  // namespace kvrazor::cuda
