// One decode kernel: codec, rotation, head_dim and tiles of query heads, and what its warps share.
#pragma once

#include "src/backends/cuda/affine_page.cuh"
#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/attend_result.cuh"
#include "src/backends/cuda/attend_shared.h"
#include "src/backends/cuda/packed_page.h"
#include "src/backends/cuda/page_convert.h"
#include "src/backends/cuda/razor_page.cuh"
#include "src/backends/cuda/schedule.cuh"

namespace kvrazor::cuda {

/// The codec of a page.
template <PageForm kForm, int kTiles>
struct CodecChoice { using Type = RazorCodec<kForm.head_dim, kTiles, kForm.key_bits, kForm.rank_one_mean, kForm.value_groups>; };
template <PageForm kForm, int kTiles>
  requires(kForm.kind == PageKind::kAffine)
struct CodecChoice<kForm, kTiles> { using Type = AffineCodec<kForm.head_dim, kTiles, kForm.key_bits, kForm.value_bits>; };
template <PageForm kForm, int kTiles>
using CodecOf = typename CodecChoice<kForm, kTiles>::Type;

template <class Codec_, bool kRotate_>
struct AttendConfig {
  using Codec = Codec_;
  static constexpr bool kRotate = kRotate_;
  static constexpr int kDim = Codec::kDim, kTiles = Codec::kTiles;
  using Page = typename Codec::Page;
  using State = typename Codec::State;
  static constexpr int kTeamWarps = Codec::kTeamWarps, kTeams = Codec::kTeams;  // a unit belongs to a team, round robin
  static constexpr int kConsumers = kTeamWarps * kTeams;
  static constexpr int kThreads = (kConsumers + 1 + kMergers) * 32;
  static_assert(kConsumers <= kMaxConsumers && kConsumers % 4 == 0 && kMergers == 3);
  // A thread's at the start, then of consumers and of the others; 65536 a multiprocessor.
  static constexpr int kStartRegisters = 65536 / kThreads / 8 * 8;
  static constexpr int kOtherRegisters = 104;
  static constexpr int kConsumerRegisters = (kStartRegisters * (kConsumers + 4) - kOtherRegisters * 4) / kConsumers / 8 * 8;
  static constexpr int kRowUnitBytes = 2 * kRowUnit * kDim * 2;  // k and v
  static constexpr int kStageBytes = Page::kBytes > kRowUnitBytes ? Page::kBytes : kRowUnitBytes;
  static constexpr int kQueryBytes = Codec::kQueryBytes + kF16QueryBytes<kDim>;
  static constexpr int kScratchRow = kDim + 8;         // floats; the pad keeps the lanes' stores apart
  static constexpr int kRowSide = kTokens * kDim * 2;  // bytes of k in one head of a row page

  /// Shared memory, in this order; every part is a multiple of 16 bytes.
  struct Shared {
    uint8_t* ring;             // [num_stages][kStageBytes]
    StageInfo* info;           // [num_stages]
    uint8_t* q_fragments;      // [kQuerySlots][kQueryBytes]: sealed pages, then 16-bit rows
    SegmentInfo* segments;     // [kQuerySlots + 1]: those whose queries stand there, and the CTA's first
    float* scratch;            // [kConsumers][rows][kScratchRow]
    float2* scratch_lse;       // [kConsumers][kBlockRows]: maximum, sum
    int32_t* scratch_rotated;  // [kConsumers]: the state is in the pages' basis
    LineInfo* line;
    SequenceUnits* sequences;  // [batch_size]
    uint32_t full, empty, q_ready, q_empty, scratch_full, scratch_empty, refill;  // barriers; refill: one a consumer

    __device__ Shared(uint8_t* base, const AttendParams& a) {
      uint8_t* p = base;
      auto take = [&](int bytes) { uint8_t* at = p; p += RoundUp(bytes, 16); return at; };
      const uint32_t barriers = SharedAddress(take(kBarrierBytes));
      ring = base + RoundUp(kBarrierBytes, 128);
      p = ring;
      take(a.num_stages * kStageBytes);
      info = reinterpret_cast<StageInfo*>(take(a.num_stages * static_cast<int>(sizeof(StageInfo))));
      q_fragments = take(kQuerySlots * kQueryBytes);
      segments = reinterpret_cast<SegmentInfo*>(take((kQuerySlots + 1) * static_cast<int>(sizeof(SegmentInfo))));
      scratch = reinterpret_cast<float*>(take(kConsumers * a.block_rows * kScratchRow * 4));
      scratch_lse = reinterpret_cast<float2*>(take(kConsumers * kBlockRows * 8));
      scratch_rotated = reinterpret_cast<int32_t*>(take(kConsumers * 4));
      line = reinterpret_cast<LineInfo*>(take(sizeof(LineInfo)));
      sequences = reinterpret_cast<SequenceUnits*>(take(a.batch_size * static_cast<int>(sizeof(SequenceUnits))));
      full = barriers;
      empty = full + 2 * 8 * kMaxStages;
      q_ready = empty + 8 * kMaxStages;
      q_empty = q_ready + 8 * kQuerySlots;
      scratch_full = q_empty + 8 * kQuerySlots;
      scratch_empty = scratch_full + 8;
      refill = scratch_empty + 8;
    }
  };

  static int SharedBytes(int num_stages, int block_rows, int batch_size) {
    const auto part = [](int64_t bytes) { return RoundUp(static_cast<int>(bytes), 16); };
    return RoundUp(kBarrierBytes, 128) + part(num_stages * kStageBytes) + part(num_stages * sizeof(StageInfo)) +
           part(kQuerySlots * kQueryBytes) + part((kQuerySlots + 1) * sizeof(SegmentInfo)) + part(kConsumers * block_rows * kScratchRow * 4) +
           part(kConsumers * kBlockRows * 8) + part(kConsumers * 4) + part(sizeof(LineInfo)) + part(batch_size * sizeof(SequenceUnits));
  }

  /// By one warp; other threads see it after a barrier of the CTA.
  __device__ static void InitBarriers(const Shared& sm, int num_stages, int lane) {
#pragma unroll 1  // code that runs once: the shorter the better
    for (int i = lane; i < num_stages; i += 32) {
      BarrierInit(sm.full + 8 * i, 1);
      BarrierInit(sm.full + 8 * (kMaxStages + i), 1);
      BarrierInit(sm.empty + 8 * i, kTeamWarps * kArrivalsPerWarp);
    }
    if (lane < kQuerySlots) {
      BarrierInit(sm.q_ready + 8 * lane, (kTiles + 1) * kArrivalsPerWarp);
      BarrierInit(sm.q_empty + 8 * lane, kConsumers * kArrivalsPerWarp);
    }
    if (lane < kConsumers) BarrierInit(sm.refill + 8 * lane, 1);
    if (lane == 0) {
      BarrierInit(sm.scratch_full, kConsumers * kArrivalsPerWarp);
      BarrierInit(sm.scratch_empty, kMergers * kArrivalsPerWarp);
    }
    FenceAsyncProxy();
  }

  /// Brings `tokens` rows of k and of v (at most a unit); what stands behind them in the stage is left as it is.
  __device__ static void CopyRows(uint8_t* stage, const uint8_t* from, int v_distance, int tokens, uint32_t barrier, uint64_t policy) {
    const int bytes = min(tokens, kRowUnit) * kDim * 2;
    BarrierArriveExpect(barrier, 2 * bytes);
    BulkCopy(SharedAddress(stage), from, bytes, barrier, policy);
    BulkCopy(SharedAddress(stage) + kRowUnitBytes / 2, from + v_distance, bytes, barrier, policy);
  }
};

}  // namespace kvrazor::cuda
