// Backend::Rotate on the CPU.
#pragma once

#include <cstdint>

namespace kvrazor::cpu {

/// x [num_rows][head_dim] f32, any alignment.
void Rotate(float* x, int64_t num_rows, int head_dim);

}  // namespace kvrazor::cpu
