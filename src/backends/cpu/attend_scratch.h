// Scratch memory of the attention kernels: one grow-only, cache-line aligned buffer a thread, carved into typed arrays.
#pragma once

#include <cstddef>
#include <cstdint>
#include <new>

namespace kvrazor::cpu {

inline constexpr int64_t kScratchAlign = 64;

/// Hands out consecutive aligned arrays. Without memory (nullptr) it only counts, so one function both measures and carves.
class Carver {
 public:
  explicit Carver(std::byte* base) : base_(base) {}

  template <typename T>
  T* Take(int64_t count) {
    const int64_t at = used_;
    used_ += (count * static_cast<int64_t>(sizeof(T)) + kScratchAlign - 1) / kScratchAlign * kScratchAlign;
    return base_ ? reinterpret_cast<T*>(base_ + at) : nullptr;
  }
  int64_t used_bytes() const { return used_; }

 private:
  std::byte* base_;
  int64_t used_ = 0;
};

class ScratchBuffer {
 public:
  ScratchBuffer() = default;
  ~ScratchBuffer() { Free(); }
  ScratchBuffer(const ScratchBuffer&) = delete;
  ScratchBuffer& operator=(const ScratchBuffer&) = delete;

  /// At least `bytes`, contents undefined; valid until the next call.
  std::byte* Reserve(int64_t bytes) {
    if (bytes > bytes_) {
      Free();
      data_ = static_cast<std::byte*>(::operator new (static_cast<size_t>(bytes), std::align_val_t{kScratchAlign}));
      bytes_ = bytes;
    }
    return data_;
  }

 private:
  void Free() {
    if (data_) ::operator delete (data_, std::align_val_t{kScratchAlign});
    data_ = nullptr;
    bytes_ = 0;
  }

  std::byte* data_ = nullptr;
  int64_t bytes_ = 0;
};

}  // namespace kvrazor::cpu
