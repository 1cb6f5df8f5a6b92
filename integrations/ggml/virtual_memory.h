// Address space that costs memory only where it is written to.
#pragma once

#include <cstddef>
#include <cstdint>
#include <utility>

namespace kvrazor::ggml {

/// A range of addresses, page aligned, reserved for the lifetime of the object.
class AddressRange {
 public:
  enum class Access { kNone, kReadWrite };

  AddressRange() = default;
  ~AddressRange();
  AddressRange(AddressRange&& other) noexcept { *this = std::move(other); }
  AddressRange& operator=(AddressRange&& other) noexcept;

  /// Throws std::bad_alloc if the system has no such range.
  static AddressRange Reserve(int64_t bytes, Access access);

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  void SetAccess(Access access);
  /// Gives the memory back; the addresses stay and read as 0. [offset, offset + bytes) is narrowed to whole system
  /// pages.
  void Release(int64_t offset, int64_t bytes);
  void ReleaseAll() { Release(0, bytes_); }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace kvrazor::ggml
