// The steps of a packed KV cache as functions. A backend implements all of them; src/backends/* has one folder each.
// Nothing here keeps state: memory, pages and sequences are the caller's (src/cache, integrations/ggml).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "src/ops/attend.h"
#include "src/ops/second_moment.h"

namespace kvrazor {

/// Memory that the ops of a backend keep between calls: it only grows, up to this. Nothing for backends that are made to be
/// read, not to be fast: they allocate as they go.
struct WorkspaceBytes {
  int64_t shared = 0;      ///< once
  int64_t per_thread = 0;  ///< for each thread of the executor
};

class Backend {
 public:
  virtual ~Backend() = default;
  virtual const char* name() const = 0;
  /// Instruction set or device in use, for people ("AVX3_DL", ...).
  virtual std::string description() const = 0;

  /// Rotates each head in place: x <- H x, H the Sylvester Hadamard matrix / sqrt(head_dim). Its own inverse.
  ///   x [num_rows][head_dim] f32, contiguous
  virtual void Rotate(float* x, int64_t num_rows, int head_dim) const = 0;

  /// Seals one page of one side.
  ///   rows    f16 [128][num_kv_heads][head_dim], not rotated
  ///   exact   tokens left out of every statistic (kept in 16 bits elsewhere); their codes are written as 0
  ///   moment  queries seen so far, or nullptr; only Codec::kRazorKey reads it
  ///   page    layout.page_bytes, 64-byte aligned, every byte is written
  /// Values that are not finite are treated as 0 (a page never spreads them to other tokens).
  virtual void Seal(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
                    std::byte* page) const = 0;

  /// Values of tokens [first, last) of a page side, as the model would see them: not rotated, f32.
  ///   out  [last - first][num_kv_heads][head_dim]
  virtual void Dequantize(const PageLayout& layout, const PageSide& page, int first, int last, float* out) const = 0;

  /// Adds queries to the second moment and counts them; `stride` takes every stride-th token.
  ///   q  [qo_len][num_qo_heads] rows, after RoPE, not rotated
  virtual void AddQueries(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride) const = 0;

  /// Attention; see AttendArgs. Scratch memory is taken from a per-thread pool that only grows.
  virtual void Attend(const AttendArgs& args, Executor& executor) const = 0;

  /// The most memory that the ops above take for a layer of this shape, whatever its chunks and its number of tokens.
  /// Layers use the same memory in turn.
  virtual WorkspaceBytes Workspace(const LayerFormat& format, int num_qo_heads) const = 0;
};

/// Highway kernels, instruction set chosen at run time.
const Backend& CpuBackend();

}  // namespace kvrazor
