// Memory for the steps that seal, read and learn: one block for each thread, which only grows.
#pragma once

#include <cstddef>

namespace kvrazor::cpu {

/// Hands out parts of the calling thread's block; at most one Scratch may live on a thread at a time. Parts are 64-byte
/// aligned and hold whatever was there before.
class Scratch {
 public:
  /// Makes room for num_values values of 4 bytes in parts of at least 16 values each (parts are rounded up to that).
  explicit Scratch(size_t num_values);

  template <typename T>
  T* Take(size_t num_values) {
    static_assert(sizeof(T) == 4);
    return static_cast<T*>(TakeBytes(num_values * sizeof(T)));
  }

 private:
  void* TakeBytes(size_t bytes);

  std::byte* next_ = nullptr;
  std::byte* end_ = nullptr;
};

}  // namespace kvrazor::cpu
