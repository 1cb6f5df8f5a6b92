// A caller's rows to the cache's 16-bit rows and to the floats that attention reads, and back.
#pragma once

#include <cstdint>

#include "kvrazor/tensor.h"
#include "src/core/half.h"

namespace kvrazor {

/// Tokens [first, last) of a view.
///   out  f16 [last - first][num_heads][head_dim]; finite values beyond f16's range become its largest
void RowsToF16(const TensorView& view, int64_t first, int64_t last, f16_bits* out);

/// The whole view.
///   out  [num_tokens][num_heads][head_dim]
void RowsToF32(const TensorView& view, float* out);

/// Fills the view: f32, or rounded to nearest even.
///   rows  [num_tokens][num_heads][head_dim]
void RowsFromF32(const float* rows, const MutableTensorView& view);

}  // namespace kvrazor
