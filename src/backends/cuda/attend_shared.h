// Sizes that the decode kernel and its plan share.
#pragma once

namespace kvrazor::cuda {

inline constexpr int kConsumers = 8;  // warps; a stage of the ring belongs to one
inline constexpr int kMergers = 3;    // warps; 12 in all leave 168 registers a thread
inline constexpr int kAttendThreads = (kConsumers + 1 + kMergers) * 32;
inline constexpr int kMergeGroups = 2;  // in which the parts of a tile are summed
inline constexpr int kQuerySlots = 2;
inline constexpr int kMaxStages = 32;
inline constexpr int kBarrierBytes = 8 * (2 * kMaxStages + 4 * kQuerySlots + 2);
inline constexpr int kPartialHeads = 8;  // heads a partial has room for

}  // namespace kvrazor::cuda
