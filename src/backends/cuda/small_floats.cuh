// The 8-bit numbers of kvrazor/layout.h on the device.
#pragma once

#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

/// EncodeE5M3 and DecodeE5M3 of kvrazor/layout.h.
__device__ __forceinline__ float DeviceDecodeE5M3(uint8_t b) { return FromF16(static_cast<uint16_t>(b << 7)); }
__device__ __forceinline__ uint8_t DeviceEncodeE5M3(float x) {
  if (!(x > 0)) return 0;
  if (x >= 61440.f) return 0xf7;
  const int exponent = static_cast<int>(__float_as_uint(x) >> 23) - 127;  // floor(log2 x); below -126 it does not matter
  const int step = max(exponent, -14) - 3;
  const float units = rintf(ldexpf(x, -step));
  return static_cast<uint8_t>(__half_as_ushort(__float2half_rn(ldexpf(units, step))) >> 7);
}

/// EncodeE3M5 of kvrazor/layout.h; base is a power of two or 0.
__device__ __forceinline__ uint8_t DeviceEncodeE3M5(float x, float base) {
  if (!(x > 0) || !(base > 0)) return 0;
  const float r = x / base;
  if (r >= 1.f + 31.f / 32) return 255;
  const int octave = max(static_cast<int>(__float_as_uint(r) >> 23) - 127, -7);  // subnormals are below the range
  const int units = static_cast<int>(rintf(ldexpf(r, 5 - octave)));
  constexpr float kLeast = 0x1p-7f * (1 + 1.f / 32);
  if (units < 32) return r > 0.5f * kLeast ? 1 : 0;
  const int code = ((octave + 7) << 5) + (units - 32);
  return static_cast<uint8_t>(code == 0 ? 1 : code);
}

/// DecodeE3M5 of kvrazor/layout.h; base is a power of two or 0.
__device__ __forceinline__ float DeviceDecodeE3M5(uint8_t b, float base) {
  return b == 0 ? 0.f : base * ldexpf(1.f + static_cast<float>(b & 31) / 32.f, (b >> 5) - 7);
}

}  // namespace kvrazor::cuda
