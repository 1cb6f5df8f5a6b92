// Memory for the steps that seal, read and learn: one block for each thread, which only grows.
#pragma once

#include <cstddef>
#include <cstdint>

namespace kvrazor::cpu {

/// Hands out parts of the calling thread's block; at most one Scratch may live on a thread at a time. Parts are 64-byte
/// aligned and hold whatever was there before.
class Scratch {
 public:
  /// Makes room for what any of these steps needs for one head: ScratchBytes(head_dim).
  explicit Scratch(size_t head_dim);

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

/// Two pages of a head as f32, two square matrices (the metric and its factor), and rows of parameters.
int64_t ScratchBytes(int64_t head_dim);

}  // namespace kvrazor::cpu
