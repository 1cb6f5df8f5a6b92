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

/// The current device; throws Error if there is none.
Device CurrentDevice();

}  // namespace kvrazor::cuda
