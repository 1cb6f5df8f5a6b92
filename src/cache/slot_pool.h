// A fixed number of equal pieces of memory.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace kvrazor {

/// Slots of one pool, handed out by number. The memory is one block, allocated once; nothing of it is touched before it is
/// used, so the system backs only what was in use at the same time.
class SlotPool {
 public:
  /// `name` is for error messages. Throws Error if the memory cannot be had.
  SlotPool(const char* name, int64_t num_slots, int64_t slot_bytes);
  ~SlotPool();
  SlotPool(const SlotPool&) = delete;
  SlotPool& operator=(const SlotPool&) = delete;

  /// There must be a free slot.
  int32_t Take();
  void Give(int32_t slot);

  std::byte* at(int32_t slot) const { return data_ + slot * slot_bytes_; }
  int64_t num_slots() const { return num_slots_; }
  int64_t slot_bytes() const { return slot_bytes_; }
  int64_t pool_bytes() const { return num_slots_ * slot_bytes_; }
  int64_t num_free() const { return num_slots_ - num_fresh_ + static_cast<int64_t>(free_.size()); }
  int64_t num_used() const { return num_slots_ - num_free(); }
  int64_t peak_used() const { return peak_used_; }
  int64_t table_bytes() const { return static_cast<int64_t>(free_.capacity() * sizeof(int32_t)); }

 private:
  int64_t num_slots_ = 0;
  int64_t slot_bytes_ = 0;
  int64_t num_fresh_ = 0;  // slots from here on were never taken
  int64_t peak_used_ = 0;
  std::byte* data_ = nullptr;  // [num_slots][slot_bytes], 64-byte aligned
  std::vector<int32_t> free_;  // given back; last in, first out: that one is still in the processor's cache
};

}  // namespace kvrazor
