// A fixed number of equal pieces of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

#include "src/core/virtual_memory.h"

namespace kvrazor {

/// Slots of one pool, handed out by number. The addresses are one block, reserved once; memory stands behind what was touched
/// of the slots in use, and goes back to the system with them.
class SlotPool {
 public:
  /// `name` is for error messages. Throws Error if the memory cannot be had.
  SlotPool(const char* name, int64_t num_slots, int64_t slot_bytes);
  ~SlotPool();
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  /// There must be a free slot. Its memory must be touched before it is written to.
  int32_t Take();
  void Give(int32_t slot);
  void Touch(int32_t slot, int64_t offset, int64_t bytes) { range_.Touch(slot * slot_bytes_ + offset, bytes); }
  /// What was there is lost. Parts of a system page stay.
  void Release(int32_t slot, int64_t offset, int64_t bytes) { range_.Release(slot * slot_bytes_ + offset, bytes); }

  std::byte* at(int32_t slot) const { return range_.data() + slot * slot_bytes_; }
  int64_t num_slots() const { return num_slots_; }
  int64_t slot_bytes() const { return slot_bytes_; }
  int64_t pool_bytes() const { return num_slots_ * slot_bytes_; }
  int64_t num_free() const { return num_slots_ - num_fresh_ + static_cast<int64_t>(free_.size()); }
  int64_t num_used() const { return num_slots_ - num_free(); }
  int64_t peak_used() const { return peak_used_; }
  /// Memory behind the slots, in whole system pages.
  int64_t committed_bytes() const { return range_.committed_bytes(); }
  int64_t table_bytes() const {
    return static_cast<int64_t>(free_.capacity() * sizeof(int32_t)) + range_.table_bytes();
  }

 private:
  int64_t num_slots_ = 0;
  int64_t slot_bytes_ = 0;
  int64_t num_fresh_ = 0;  // slots from here on were never taken
  int64_t peak_used_ = 0;
  MemoryMeter meter_;
  CommittedRange range_;       // [num_slots][slot_bytes]
  std::vector<int32_t> free_;  // given back; last in, first out: that one is still in the processor's cache
};

}  // namespace kvrazor
