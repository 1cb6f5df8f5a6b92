#include "integrations/ggml/virtual_memory.h"

#include <sys/mman.h>
#include <unistd.h>

#include <new>

namespace kvrazor::ggml {
namespace {

int64_t SystemPageBytes() {
  static const int64_t bytes = sysconf(_SC_PAGESIZE);
  return bytes;
}

int Protection(AddressRange::Access access) {
  return access == AddressRange::Access::kNone ? PROT_NONE : PROT_READ | PROT_WRITE;
}

}  // namespace

AddressRange AddressRange::Reserve(int64_t bytes, Access access) {
  AddressRange range;
  if (bytes <= 0) return range;
  const int64_t unit = SystemPageBytes();
  bytes = (bytes + unit - 1) / unit * unit;
  void* data =
      mmap(nullptr, static_cast<size_t>(bytes), Protection(access), MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (data == MAP_FAILED) throw std::bad_alloc();
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

}  // namespace kvrazor::ggml
