// Device memory for tests, and the line that skips a test where there is no device.
#pragma once

#include <cuda_runtime_api.h>
#include <gtest/gtest.h>

#include <cstddef>
#include <vector>

#define KVRAZOR_SKIP_WITHOUT_DEVICE()                                        \
  do {                                                                       \
    int count = 0;                                                           \
    if (cudaGetDeviceCount(&count) != cudaSuccess || count == 0) {           \
      GTEST_SKIP() << "no CUDA device on this machine: this test needs one"; \
    }                                                                        \
  } while (false)

namespace kvrazor::cuda {

inline void CheckCuda(cudaError_t error) { ASSERT_EQ(error, cudaSuccess) << cudaGetErrorString(error); }

template <class T>
class DeviceBuffer {
 public:
  explicit DeviceBuffer(size_t size, int fill = 0xff) : size_(size) {
    CheckCuda(cudaMalloc(&data_, bytes()));
    Fill(fill);
  }
  explicit DeviceBuffer(const std::vector<T>& from) : DeviceBuffer(from.size()) { Upload(from); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  DeviceBuffer& operator=(const DeviceBuffer&) = delete;
  ~DeviceBuffer() { cudaFree(data_); }

  T* data() const { return static_cast<T*>(data_); }
  void Fill(int byte) { CheckCuda(cudaMemset(data_, byte, bytes())); }  // 0xff: NaN in f16 and f32
  void Upload(const std::vector<T>& from) {
    CheckCuda(cudaMemcpy(data_, from.data(), from.size() * sizeof(T), cudaMemcpyHostToDevice));
  }
  std::vector<T> Download() const {
    std::vector<T> to(size_);
    CheckCuda(cudaMemcpy(to.data(), data_, size_ * sizeof(T), cudaMemcpyDeviceToHost));
    return to;
  }

 private:
  size_t bytes() const { return (size_ == 0 ? 1 : size_) * sizeof(T); }
  size_t size_;
  void* data_ = nullptr;
};

}  // namespace kvrazor::cuda
