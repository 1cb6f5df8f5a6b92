// Rows of f32 to rows of f16, as ggml stores them (round to nearest, ties to even).
#pragma once

#include <cstdint>

#include "src/core/half.h"

namespace kvrazor::ggml {

void F16FromF32Row(const float* from, f16_bits* to, int64_t count);

}  // namespace kvrazor::ggml
