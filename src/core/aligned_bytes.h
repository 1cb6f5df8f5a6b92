// A sealed page, or anything else that kernels read in whole vectors, in memory of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <new>

namespace kvrazor {

/// Bytes that start at a multiple of 64 and hold whatever was there before.
class AlignedBytes {
 public:
  explicit AlignedBytes(int64_t size)
      : data_(static_cast<std::byte*>(::operator new(static_cast<size_t>(size), kAlignment))) {}
  std::byte* get() const { return data_.get(); }

 private:
  static constexpr std::align_val_t kAlignment{64};
  struct Free {
    void operator()(std::byte* p) const { ::operator delete(p, kAlignment); }
  };
  std::unique_ptr<std::byte, Free> data_;
};

}  // namespace kvrazor
