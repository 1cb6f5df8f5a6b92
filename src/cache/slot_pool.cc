#include "src/cache/slot_pool.h"

#include <algorithm>
#include <limits>
#include <new>

#include "src/cache/message.h"

#if defined(__SANITIZE_ADDRESS__)
#define KVRAZOR_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define KVRAZOR_ASAN 1
#endif
#endif
#ifdef KVRAZOR_ASAN
#include <sanitizer/asan_interface.h>
#endif

namespace kvrazor {
namespace {

// The sanitizer's notes take an eighth of what they describe; an enormous pool would not be worth it.
constexpr int64_t kForbiddenAtFirst = int64_t{1} << 30;

// A free slot is forbidden ground: reading a page that was given back is found as any other use after free.
void Forbid(const std::byte* data, int64_t bytes) {
#ifdef KVRAZOR_ASAN
  if (bytes > 0) __asan_poison_memory_region(data, static_cast<size_t>(bytes));
#endif
}

void Allow(const std::byte* data, int64_t bytes) {
#ifdef KVRAZOR_ASAN
  if (bytes > 0) __asan_unpoison_memory_region(data, static_cast<size_t>(bytes));
#endif
}

}  // namespace

SlotPool::SlotPool(const char* name, int64_t num_slots, int64_t slot_bytes)
    : num_slots_(num_slots), slot_bytes_(slot_bytes) {
  int64_t bytes = 0;
  if (num_slots > std::numeric_limits<int32_t>::max() || __builtin_mul_overflow(num_slots, slot_bytes, &bytes)) {
    Fail("cache: ", num_slots, " ", name, " of ", slot_bytes,
         " bytes are more than can be addressed; ask for fewer tokens or pages.");
  }
  if (bytes == 0) return;
  try {
    range_ = CommittedRange(bytes, meter_, AddressRange::Promise::kNoMore);
    free_.reserve(static_cast<size_t>(num_slots));
  } catch (const std::bad_alloc&) {
    Fail("cache: no memory for ", num_slots, " ", name, " of ", slot_bytes, " bytes (", bytes >> 20,
         " MiB in all); ask for fewer tokens or pages.");
  }
  Forbid(range_.data(), std::min(bytes, kForbiddenAtFirst));
}

SlotPool::~SlotPool() { Allow(range_.data(), pool_bytes()); }

int32_t SlotPool::Take() {
  int32_t slot = static_cast<int32_t>(num_fresh_);
  if (free_.empty()) {
    ++num_fresh_;
  } else {
    slot = free_.back();
    free_.pop_back();
  }
  peak_used_ = std::max(peak_used_, num_used());
  Allow(at(slot), slot_bytes_);
  return slot;
}

void SlotPool::Give(int32_t slot) {
  Release(slot, 0, slot_bytes_);
  Forbid(at(slot), slot_bytes_);
  free_.push_back(slot);
}

}  // namespace kvrazor
