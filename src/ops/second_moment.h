// Second moment of the queries a layer has seen, as it is kept: one triangle in 16 bits.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "kvrazor/layout.h"

namespace kvrazor {

/// M = sum q q^T over all query heads of a kv head, in the rotated basis. Razor keys are sealed in its metric
/// (docs/numerics.md). One object a layer, shared by all sequences.
///
///   M_cc = variance_c                                          f32
///   M_ij = correlation_ij / 32767 * sqrt(M_ii M_jj), j < i     int16
///
/// A correlation is off by at most 2^-16 for each Add, so x^T M x by at most 2^-16 tr(M) |x|^2: nothing beside the damping
/// of 0.2 tr(M) / head_dim that every use adds. What does not depend on the scale of M, as sealing, does not see that old
/// queries are forgotten: beyond kMostRows all of M is halved, so a row never weighs less than 1 / kMostRows and never
/// vanishes in the rounding.
class SecondMoment {
 public:
  static constexpr int64_t kMostRows = int64_t{1} << 14;
  static constexpr float kOne = 32767;  // the code of a correlation of 1

  SecondMoment() = default;
  explicit SecondMoment(HeadShape shape)
      : shape_(shape),
        variances_(static_cast<size_t>(shape.num_kv_heads) * static_cast<size_t>(shape.head_dim)),
        correlations_(static_cast<size_t>(shape.num_kv_heads * TriangleValues(shape))) {}

  /// Below the diagonal of one head.
  static int64_t TriangleValues(HeadShape s) { return int64_t{s.head_dim} * (s.head_dim - 1) / 2; }
  static int64_t BytesFor(HeadShape s) {
    return s.num_kv_heads * (s.head_dim * int64_t{sizeof(float)} + TriangleValues(s) * int64_t{sizeof(int16_t)});
  }

  HeadShape shape() const { return shape_; }
  bool empty() const { return count_ == 0; }
  int64_t bytes() const { return BytesFor(shape_); }
  /// Query rows in M: those that were added, less what was forgotten.
  int64_t count() const { return count_; }
  void set_count(int64_t count) { count_ = count; }
  /// Rows were added to every head: counts them, and forgets.
  void AddCount(int64_t rows);

  float* variances(int h) { return variances_.data() + int64_t{h} * shape_.head_dim; }  // [head_dim]
  const float* variances(int h) const { return variances_.data() + int64_t{h} * shape_.head_dim; }
  /// Row i is [i] values from i (i - 1) / 2 on.
  int16_t* correlations(int h) { return correlations_.data() + h * TriangleValues(shape_); }
  const int16_t* correlations(int h) const { return correlations_.data() + h * TriangleValues(shape_); }

  /// M of one head.
  ///   square  [head_dim][head_dim]; below and on the diagonal, the rest is left alone
  void ReadLower(int h, float* square) const;
  std::vector<float> Square(int h) const;  // both triangles
  /// M += square, positive semidefinite; what lies above its diagonal is not read.
  void Add(int h, const float* square);

  /// All of M as bytes(), for saving; the count goes beside it.
  void Save(std::span<std::byte> to) const;
  void Load(std::span<const std::byte> from, int64_t count);

 private:
  HeadShape shape_;
  std::vector<float> variances_;       // [num_kv_heads][head_dim]
  std::vector<int16_t> correlations_;  // [num_kv_heads][TriangleValues]
  int64_t count_ = 0;
};

}  // namespace kvrazor
