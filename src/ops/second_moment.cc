#include "src/ops/second_moment.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>

namespace kvrazor {

void SecondMoment::AddCount(int64_t rows) {
  count_ += rows;
  for (; count_ > kMostRows; count_ /= 2) {
    for (float& variance : variances_) variance *= 0.5f;
  }
}

void SecondMoment::ReadLower(int h, float* square) const {
  const int n = shape_.head_dim;
  const float* variance = variances(h);
  const int16_t* code = correlations(h);
  std::vector<float> deviation(static_cast<size_t>(n));
  for (int i = 0; i < n; ++i) deviation[static_cast<size_t>(i)] = std::sqrt(variance[i]);
  for (int i = 0; i < n; ++i) {
    const float factor = deviation[static_cast<size_t>(i)] / kOne;
    float* row = square + int64_t{i} * n;
    for (int j = 0; j < i; ++j) row[j] = static_cast<float>(code[j]) * factor * deviation[static_cast<size_t>(j)];
    row[i] = variance[i];
    code += i;
  }
}

std::vector<float> SecondMoment::Square(int h) const {
  const auto n = static_cast<size_t>(shape_.head_dim);
  std::vector<float> square(n * n);
  ReadLower(h, square.data());
  for (size_t i = 0; i < n; ++i) {
    for (size_t j = 0; j < i; ++j) square[j * n + i] = square[i * n + j];
  }
  return square;
}

void SecondMoment::Add(int h, const float* square) {
  const int n = shape_.head_dim;
  std::vector<float> sum(static_cast<size_t>(n) * static_cast<size_t>(n));
  ReadLower(h, sum.data());
  float* variance = variances(h);
  for (int i = 0; i < n; ++i) variance[i] += square[int64_t{i} * n + i];
  int16_t* code = correlations(h);
  for (int i = 0; i < n; ++i) {
    for (int j = 0; j < i; ++j) {
      const double value = double{sum[static_cast<size_t>(i * n + j)]} + square[int64_t{i} * n + j];
      const double most = std::sqrt(double{variance[i]} * variance[j]);
      const double x = most >= FLT_MIN ? value / most * kOne : 0.0;
      *code++ = static_cast<int16_t>(std::lrint(std::clamp<double>(x, -kOne, kOne)));
    }
  }
}

void SecondMoment::Save(std::span<std::byte> to) const {
  const size_t variance_bytes = variances_.size() * sizeof(float);
  std::memcpy(to.data(), variances_.data(), variance_bytes);
  std::memcpy(to.data() + variance_bytes, correlations_.data(), correlations_.size() * sizeof(int16_t));
}

void SecondMoment::Load(std::span<const std::byte> from, int64_t count) {
  const size_t variance_bytes = variances_.size() * sizeof(float);
  std::memcpy(variances_.data(), from.data(), variance_bytes);
  std::memcpy(correlations_.data(), from.data() + variance_bytes, correlations_.size() * sizeof(int16_t));
  count_ = count;
}

}  // namespace kvrazor
