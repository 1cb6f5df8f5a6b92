// New rows to the row pages: the first part of an append.
#pragma once

#include "src/backends/cuda/seal_rows.cuh"

namespace kvrazor::cuda {

/// Eight bf16 values as f16, those out of range at its largest (NaN stays one).
__device__ __forceinline__ uint4 F16FromBf16(const uint4& v) {
  uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const uint32_t w = words[i];
    const auto convert = [](uint32_t bits) -> uint32_t {
      const float x = __uint_as_float(bits);
      return x != x ? 0x7e00u : SaturatedF16(x);
    };
    words[i] = convert(w << 16) | convert(w & 0xffff0000u) << 16;
  }
  return make_uint4(words[0], words[1], words[2], words[3]);
}

/// Rows of one head and side; D/8 threads a token, each 16 bytes.
template <int kDim>
__device__ __forceinline__ void StoreNewRows(const StoreRows& store, int num_kv_heads, int head, int side, int block) {
  constexpr int kChunks = kDim / 8;
  const int tokens = blockDim.x / kChunks;
  const int token = block * tokens + static_cast<int>(threadIdx.x) / kChunks, chunk = threadIdx.x % kChunks;
  if (token >= store.num_tokens) return;
  const int slot = store.slots[token];
  if (slot < 0 || slot >= store.num_slots) return;
  uint4 v = *reinterpret_cast<const uint4*>((side == 0 ? store.k : store.v) + token * store.token_bytes + head * store.head_bytes + chunk * 16);
  if (store.is_bf16) v = F16FromBf16(v);
  const int64_t block_at = ((int64_t{slot / kTokens} * num_kv_heads + head) * 2 + side) * (kTokens * 2 * kDim);
  *reinterpret_cast<uint4*>(store.row_pages + block_at + RowByte<kDim>(slot % kTokens, 8 * chunk)) = v;
}

}  // namespace kvrazor::cuda
