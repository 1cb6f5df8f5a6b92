// A caller's rows: pointer, shape, strides and type. Nothing is owned or copied.
#pragma once

#include <cstdint>

namespace kvrazor {

enum class Dtype { kF32, kF16, kBF16 };

/// Rows [num_tokens][num_heads][head_dim]. Strides count elements; the channels of a head are contiguous.
template <typename Void>
struct BasicTensorView {
  Void* data = nullptr;
  Dtype dtype = Dtype::kF32;
  int64_t num_tokens = 0;
  int num_heads = 0;
  int head_dim = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;

  BasicTensorView() = default;
  BasicTensorView(Void* data, Dtype dtype, int64_t num_tokens, int num_heads, int head_dim, int64_t token_stride,
                  int64_t head_stride)
      : data(data),
        dtype(dtype),
        num_tokens(num_tokens),
        num_heads(num_heads),
        head_dim(head_dim),
        token_stride(token_stride),
        head_stride(head_stride) {}
  /// Contiguous rows.
  BasicTensorView(Void* data, Dtype dtype, int64_t num_tokens, int num_heads, int head_dim)
      : BasicTensorView(data, dtype, num_tokens, num_heads, head_dim, int64_t{num_heads} * head_dim, head_dim) {}
};
using TensorView = BasicTensorView<const void>;
using MutableTensorView = BasicTensorView<void>;

}  // namespace kvrazor
