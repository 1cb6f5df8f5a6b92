#include "reference/second_moment.h"

#include <algorithm>

#include "reference/rotate.h"

namespace kvrazor::reference {
namespace {

bool IsUsable(const float* row, int head_dim) {
  double sum = 0;
  for (int c = 0; c < head_dim; ++c) sum += double{row[c]} * row[c];
  return sum < 0x1p100;  // false for NaN
}

}  // namespace

std::vector<Sum> QueryMoment(HeadShape shape, const QueryRows& q, int qo_len, int num_qo_heads, int stride) {
  const int dim = shape.head_dim;
  const int gqa_ratio = num_qo_heads / shape.num_kv_heads;
  std::vector<Sum> moment(static_cast<size_t>(shape.num_kv_heads) * dim * dim);
  for (int t = 0; t < qo_len; t += stride) {
    for (int h = 0; h < num_qo_heads; ++h) {
      const float* row = q.data + t * q.token_stride + h * q.head_stride;
      if (!IsUsable(row, dim)) continue;
      std::vector<double> rotated(row, row + dim);
      RotateHead(rotated.data(), dim);
      Sum* head = &moment[static_cast<size_t>(h / gqa_ratio) * dim * dim];
      for (int i = 0; i < dim; ++i) {
        for (int j = 0; j < dim; ++j) head[i * dim + j].Add(rotated[i] * rotated[j]);
      }
    }
  }
  return moment;
}

int64_t QueryCount(HeadShape shape, const QueryRows& q, int qo_len, int num_qo_heads, int stride) {
  std::vector<int64_t> count(static_cast<size_t>(shape.num_kv_heads));
  const int gqa_ratio = num_qo_heads / shape.num_kv_heads;
  for (int t = 0; t < qo_len; t += stride) {
    for (int h = 0; h < num_qo_heads; ++h) {
      count[h / gqa_ratio] += IsUsable(q.data + t * q.token_stride + h * q.head_stride, shape.head_dim);
    }
  }
  return *std::max_element(count.begin(), count.end());
}

}  // namespace kvrazor::reference
