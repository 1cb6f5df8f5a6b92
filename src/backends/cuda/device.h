// What plans must know of the device.
#pragma once

#include <cstdint>
#include <string>

namespace kvrazor::cuda {

struct Device {
  std::string name;
  int compute_major = 0;
  int num_sms = 0;
  int64_t shared_bytes = 0;  ///< a CTA may use
};

struct PackedFormat;
/// Throws Error if kernels of `op` over such pages cannot run on this device: packed pages need compute capability 9.0, plain ones 8.0.
void CheckDevice(const char* op, const PackedFormat& format, const Device& device);

/// The current device; throws Error if there is none.
Device CurrentDevice();

}  // namespace kvrazor::cuda
