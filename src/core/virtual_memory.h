// Address space that costs memory only where it is written to.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <utility>
#include <vector>

namespace kvrazor {

/// A range of addresses, page aligned, reserved for the lifetime of the object.
class AddressRange {
 public:
  enum class Access { kNone, kReadWrite };

  AddressRange() = default;
  ~AddressRange();
  AddressRange(AddressRange&& other) noexcept { *this = std::move(other); }
  AddressRange& operator=(AddressRange&& other) noexcept;

  /// What the range may cost: kNoMore than the machine has (checked now), or kWhatIsUsed (the range may be larger).
  enum class Promise { kNoMore, kWhatIsUsed };

  /// Throws std::bad_alloc if the system has no such range.
  static AddressRange Reserve(int64_t bytes, Access access, Promise promise = Promise::kWhatIsUsed);

  std::byte* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

  void SetAccess(Access access);
  /// Gives the memory back; the addresses stay and read as 0. [offset, offset + bytes) is narrowed to whole system
  /// pages.
  void Release(int64_t offset, int64_t bytes);
  static int64_t SystemPageBytes();
  void ReleaseAll() { Release(0, bytes_); }

 private:
  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

/// Bytes that one cache has from the system now, and the most it ever had at once. Used by one thread at a time.
class MemoryMeter {
 public:
  void Add(int64_t bytes) {
    now_ += bytes;
    peak_ = std::max(peak_, now_);
  }
  int64_t now() const { return now_; }
  int64_t peak() const { return peak_; }

 private:
  int64_t now_ = 0;
  int64_t peak_ = 0;
};

/// An AddressRange that knows to the system page how much memory stands behind it.
class CommittedRange {
 public:
  CommittedRange() = default;
  CommittedRange(int64_t bytes, MemoryMeter& meter, AddressRange::Promise promise = AddressRange::Promise::kWhatIsUsed);
  ~CommittedRange() { Count(-committed_bytes_); }
  CommittedRange(CommittedRange&& other) noexcept { *this = std::move(other); }
  CommittedRange& operator=(CommittedRange&& other) noexcept;

  std::byte* data() const { return range_.data(); }
  /// To be called before [offset, offset + bytes) is written to.
  void Touch(int64_t offset, int64_t bytes);
  /// As AddressRange::Release: what shares a system page with something outside stays.
  void Release(int64_t offset, int64_t bytes);
  void ReleaseAll() { Release(0, range_.bytes()); }

  int64_t committed_bytes() const { return committed_bytes_; }
  int64_t table_bytes() const { return static_cast<int64_t>(touched_.capacity() / 8); }

 private:
  void Count(int64_t bytes);

  AddressRange range_;
  MemoryMeter* meter_ = nullptr;
  std::vector<bool> touched_;  // a bit for each system page
  int64_t committed_bytes_ = 0;
};

}  // namespace kvrazor
