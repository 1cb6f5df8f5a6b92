// Decode attention over packed pages, 16-bit rows and sinks, one launch (docs/cuda.md). One CTA an SM, persistent:
//
//   producer     1 warp           works out the schedule, then attend_producer.cuh
//   consumers    8 or 12 warps    attend_consumer.cuh; a unit belongs to a team of 1 (razor) or 2 warps (affine), round robin
//   mergers      3 warps          turn q into operand fragments for the next segment (attend_query.cuh), merge the states of the last one
//                                 (attend_merge.cuh); the CTA's last segment is merged by the consumers
//
//   team w of n:  w, w + n, w + 2 n, ... of the segment's units > state > scratch [consumers][rows][D + 8] > mergers
#pragma once

#include "src/backends/cuda/attend_config.cuh"
#include "src/backends/cuda/attend_consumer.cuh"
#include "src/backends/cuda/attend_merge.cuh"
#include "src/backends/cuda/attend_producer.cuh"
#include "src/backends/cuda/attend_query.cuh"

namespace kvrazor::cuda {

template <class Config>
__device__ void RunMergers(const AttendParams& a, const typename Config::Shared& sm, int warp) {
  Walk walk(sm.sequences, *sm.line, a);
  Segment segment{}, next;
  int number = 0;
  for (; walk.Next(next); ++number) {  // queries are prepared one segment ahead; the last segment is left to the consumers
    AttendQuery<Config>::Prepare(a, sm, next, number, walk.IsLast(), warp);
    if (number > 0) {
      BarrierWait(sm.scratch_full, (number - 1) & 1);
      AttendMerge<Config>::MergeStates(a, sm, segment, warp, kMergers);
      WarpArrive(sm.scratch_empty);
    }
    segment = next;
  }
  if (number == 0) AttendQuery<Config>::PrepareNothing(sm, warp);
}

/// Lengths and page tables, shared out over the lanes of one warp a CTA: they are the first two of three dependent reads.
__device__ inline void PrefetchTables(const AttendParams& a, int lane) {
  constexpr int kLine = 128 / sizeof(int32_t);
  const int64_t thread = static_cast<int64_t>(lane) * gridDim.x + blockIdx.x;
  const int64_t entries = static_cast<int64_t>(a.batch_size) * a.table_stride;
  if (thread * kLine < entries) PrefetchLine(a.page_table + thread * kLine);
  if (thread * kLine < a.batch_size) {
    PrefetchLine(a.kv_len + thread * kLine);
    PrefetchLine(a.row_start + thread * kLine);
  }
}

template <class Config>
__global__ __launch_bounds__(Config::kThreads, 1) void Attend(const __grid_constant__ AttendParams a) {
  constexpr int kConsumers = Config::kConsumers;
  extern __shared__ __align__(128) uint8_t shared[];
  const typename Config::Shared sm(shared, a);
  const int lane = threadIdx.x & 31;
  const int warp = threadIdx.x >> 5;
  LetNextKernelStart();
  // No value of global memory is used or written before WaitForLastKernel(). Until the first page is asked for every instruction counts:
  // code that runs once comes from far away.
  if (warp < kConsumers) {
    if constexpr (Config::Codec::kMovesRegisters) TakeRegisters<Config::kConsumerRegisters>();
    WaitForLastKernel();
    NamedBarrier<kScheduleBarrier, Config::kThreads>();
    AttendConsumer<Config>::Run(a, sm, warp);
    const Segment& first = sm.segments[kQuerySlots].segment;
    const bool owns = first.first_unit > 0 && first.first_unit + first.num_units == first.tile_units;  // the rest of a tile begun before
    if (owns) AttendMerge<Config>::FinishTile(a, sm, first, warp);
  } else {
    if constexpr (Config::Codec::kMovesRegisters) GiveRegisters<Config::kOtherRegisters>();
    if (warp == kConsumers) {
      WaitForLastKernel();
      MakeSchedule(a, sm.sequences, sm.line, lane);
      __syncwarp();
      NamedBarrierArrive<kScheduleBarrier, Config::kThreads>();
      NamedBarrier<kRingBarrier, 64>();
      AttendProducer<Config>::Run(a, sm);
    } else {
      const int merger = warp - kConsumers - 1;
      if (merger == 0) {
        Config::InitBarriers(sm, a.num_stages, lane);
        __syncwarp();
        NamedBarrierArrive<kRingBarrier, 64>();
      }
      if (merger == 1) PrefetchTables(a, lane);
      WaitForLastKernel();
      NamedBarrier<kScheduleBarrier, Config::kThreads>();
      RunMergers<Config>(a, sm, merger);
      AttendMerge<Config>::StoreEmpty(a, sm, static_cast<int>(threadIdx.x) - (kConsumers + 1) * 32);
    }
  }
}

}  // namespace kvrazor::cuda
