// The steps of a packed KV cache as functions. A backend implements all of them; src/backends/* has one folder each.
// Nothing here keeps state: memory, pages and sequences are the caller's (src/cache, integrations/ggml).
#pragma once

#include <cstddef>
#include <memory>
#include <span>
#include <string>

#include "src/ops/attend.h"

namespace kvrazor {

/// Second moment of the queries a layer has seen, in the rotated basis: M = sum q q^T over all query heads of a kv head.
/// Razor keys are sealed in its metric (recipes.md step 4). One object a layer, shared by all sequences.
class SecondMoment {
 public:
  SecondMoment() = default;
  explicit SecondMoment(HeadShape shape) : shape_(shape), data_(static_cast<size_t>(size_values(shape))) {}

  static int64_t size_values(HeadShape s) { return int64_t{s.num_kv_heads} * s.head_dim * s.head_dim; }
  HeadShape shape() const { return shape_; }
  bool empty() const { return count_ == 0; }
  int64_t count() const { return count_; }
  void set_count(int64_t count) { count_ = count; }
  float* head(int h) { return data_.data() + int64_t{h} * shape_.head_dim * shape_.head_dim; }              // [D][D]
  const float* head(int h) const { return data_.data() + int64_t{h} * shape_.head_dim * shape_.head_dim; }  // [D][D]
  int64_t bytes() const { return static_cast<int64_t>(data_.size() * sizeof(float)); }

 private:
  HeadShape shape_;
  std::vector<float> data_;  // symmetric, [num_kv_heads][head_dim][head_dim]
  int64_t count_ = 0;        // query rows added so far
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

  /// Adds queries to the second moment; `stride` takes every stride-th token.
  ///   q  [qo_len][num_qo_heads] rows, after RoPE, not rotated
  virtual void AddQueries(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride) const = 0;

  /// Attention; see AttendArgs. Scratch memory is taken from a per-thread pool that only grows.
  virtual void Attend(const AttendArgs& args, Executor& executor) const = 0;
};

/// Highway kernels, instruction set chosen at run time.
const Backend& CpuBackend();

}  // namespace kvrazor
