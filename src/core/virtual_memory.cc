#include "src/core/virtual_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace kvrazor {
namespace {

int Protection(AddressRange::Access access) {
  return access == AddressRange::Access::kNone ? PROT_NONE : PROT_READ | PROT_WRITE;
}

}  // namespace

int64_t AddressRange::SystemPageBytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

AddressRange AddressRange::Reserve(int64_t bytes, Access access, Promise promise) {
  AddressRange range;
  if (bytes <= 0) return range;
  const int64_t unit = SystemPageBytes();
  bytes = (bytes + unit - 1) / unit * unit;
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (promise == Promise::kWhatIsUsed ? MAP_NORESERVE : 0);
  void* data = mmap(nullptr, static_cast<size_t>(bytes), Protection(access), flags, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
  // A huge page would take 2 MB for the first row that is written to it. Where the system has none the call fails: as well.
  (void)madvise(data, static_cast<size_t>(bytes), MADV_NOHUGEPAGE);
  range.data_ = static_cast<std::byte*>(data);
  range.bytes_ = bytes;
  return range;
}

AddressRange::~AddressRange() {
  if (data_) munmap(data_, static_cast<size_t>(bytes_));
}

AddressRange& AddressRange::operator=(AddressRange&& other) noexcept {
  std::swap(data_, other.data_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

void AddressRange::SetAccess(Access access) {
  if (data_ && mprotect(data_, static_cast<size_t>(bytes_), Protection(access)) != 0) throw std::bad_alloc();
}

void AddressRange::Release(int64_t offset, int64_t bytes) {
  const int64_t unit = SystemPageBytes();
  const int64_t first = (offset + unit - 1) / unit * unit;
  const int64_t last = (offset + bytes) / unit * unit;
  if (data_ && last > first) madvise(data_ + first, static_cast<size_t>(last - first), MADV_DONTNEED);
}

CommittedRange::CommittedRange(int64_t bytes, MemoryMeter& meter, AddressRange::Promise promise)
    : range_(AddressRange::Reserve(bytes, AddressRange::Access::kReadWrite, promise)),
      meter_(&meter),
      touched_(static_cast<size_t>(range_.bytes() / AddressRange::SystemPageBytes())) {}

CommittedRange& CommittedRange::operator=(CommittedRange&& other) noexcept {
  std::swap(range_, other.range_);
  std::swap(meter_, other.meter_);
  std::swap(touched_, other.touched_);
  std::swap(committed_bytes_, other.committed_bytes_);
  return *this;
}

void CommittedRange::Count(int64_t bytes) {
  committed_bytes_ += bytes;
  if (meter_) meter_->Add(bytes);
}

void CommittedRange::Touch(int64_t offset, int64_t bytes) {
  if (bytes <= 0) return;
  const int64_t unit = AddressRange::SystemPageBytes();
  int64_t fresh = 0;
  for (int64_t page = offset / unit; page <= (offset + bytes - 1) / unit; ++page) {
    auto touched = touched_[static_cast<size_t>(page)];
    fresh += !touched;
    touched = true;
  }
  if (fresh > 0) Count(fresh * unit);
}

void CommittedRange::Release(int64_t offset, int64_t bytes) {
  const int64_t unit = AddressRange::SystemPageBytes();
  const int64_t first = (offset + unit - 1) / unit;
  const int64_t last = (offset + bytes) / unit;
  int64_t freed = 0;
  for (int64_t page = first; page < last; ++page) {
    auto touched = touched_[static_cast<size_t>(page)];
    freed += touched;
    touched = false;
  }
  if (freed == 0) return;
  range_.Release(offset, bytes);
  Count(-freed * unit);
}

}  // namespace kvrazor
