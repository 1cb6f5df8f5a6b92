// Sizes that the decode kernel and its plan share.
#pragma once

namespace kvrazor::cuda {

inline constexpr int kMergers = 3;  // warps; with the producer one warp a scheduler
inline constexpr unsigned kNoPart =
    0xffffffff;  // in every word of a part that is not there yet: a NaN that arithmetic does not make
inline constexpr int kQuerySlots = 2;
inline constexpr int kScheduleBarrier = 1, kMergeBarrier = 2, kRingBarrier = 3;  // named barriers of the hardware
inline constexpr int kMaxStages = 32;
inline constexpr int kMaxConsumers = 12;
inline constexpr int kBarrierBytes = 8 * (3 * kMaxStages + 2 * kQuerySlots + 2 + kMaxConsumers);
inline constexpr int kBlockRows = 8;  // query rows (new token, query head) that a tile takes at once
inline constexpr int kMaxQueryTokens = 8;

}  // namespace kvrazor::cuda
