// Reading and writing a packed tensor as bytes of 16-bit rows: state save and restore, seq_cp, zeroing.
// Offsets are in bytes of the F16 tensor that llama.cpp believes in.
#pragma once

#include <cstddef>
#include <cstdint>

#include "integrations/ggml/kv_cache.h"

namespace kvrazor::ggml {

/// A sealed page that lies wholly in the range is written as a carrier (carrier.h), everything else as rows.
void GetBytes(CacheTensor& tensor, std::byte* data, int64_t offset, int64_t size);
/// Accepts rows and carriers.
void SetBytes(CacheTensor& tensor, const std::byte* data, int64_t offset, int64_t size);
void FillBytes(CacheTensor& tensor, uint8_t value, int64_t offset, int64_t size);
/// Pages as they are where both sides line up and have the same layout, rows elsewhere.
void CopyBytes(CacheTensor& from, int64_t from_offset, CacheTensor& to, int64_t to_offset, int64_t size);
/// To be called before the cache is read: a carrier that never became complete counts as damaged, its rows are zeros.
void FinishLoading(CacheTensor& tensor);
/// The tensor is a cache of 16-bit rows now: carriers among rows that were written to it are refused, zeros in their
/// place.
void ZeroCarriers(CacheTensor& tensor, std::byte* rows, int64_t num_rows, int64_t row_bytes);

}  // namespace kvrazor::ggml
