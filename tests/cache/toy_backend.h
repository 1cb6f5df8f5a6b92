// A backend for tests of the cache: sealing keeps a checksum of what it was given, so any wrong, missing or stale row, sink or
// query shows, and costs microseconds. Attention is plain loops in double.
#pragma once

#include <bit>
#include <cmath>
#include <cstring>
#include <limits>
#include <string>
#include <vector>

#include "src/ops/backend.h"

namespace kvrazor::test {

inline uint64_t Mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

/// Attention of one query head over rows of one kv head, all in double. Rows are [keys][row_stride].
///   num_keys  keys that the query sees
inline void PlainAttention(const float* q, const float* k, const float* v, int64_t num_keys, int64_t row_stride,
                           int head_dim, double softmax_scale, float* out) {
  std::vector<double> weight(static_cast<size_t>(num_keys));
  double max = -std::numeric_limits<double>::infinity();
  for (int64_t j = 0; j < num_keys; ++j) {
    double dot = 0;
    for (int c = 0; c < head_dim; ++c) dot += double{q[c]} * double{k[j * row_stride + c]};
    weight[static_cast<size_t>(j)] = dot * softmax_scale;
    max = std::max(max, weight[static_cast<size_t>(j)]);
  }
  std::vector<double> sum(static_cast<size_t>(head_dim));
  double total = 0;
  for (int64_t j = 0; j < num_keys; ++j) {
    const double w = std::exp(weight[static_cast<size_t>(j)] - max);
    total += w;
    for (int c = 0; c < head_dim; ++c) sum[static_cast<size_t>(c)] += w * double{v[j * row_stride + c]};
  }
  for (int c = 0; c < head_dim; ++c)
    out[c] = num_keys > 0 ? static_cast<float>(sum[static_cast<size_t>(c)] / total) : 0.0f;
}

class ToyBackend : public Backend {
 public:
  const char* name() const override { return "toy"; }
  std::string description() const override { return "checksums"; }
  void Rotate(float* x, int64_t num_rows, int head_dim) const override {}

  void Seal(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
            std::byte* page) const override {
    uint64_t sum = moment != nullptr ? Mix(static_cast<uint64_t>(moment->count())) : 1;
    const int64_t n = layout.row_values();
    for (int t = 0; t < kPageTokens; ++t) {
      if (exact.Test(t)) continue;
      for (int64_t i = 0; i < n; i += 4) {
        uint64_t four = 0;
        std::memcpy(&four, rows + t * n + i, sizeof(four));
        sum = (sum ^ four) * 0x9e3779b97f4a7c15u;
        sum ^= sum >> 29;
      }
    }
    sum = Mix(sum ^ exact.words[0] ^ std::rotl(exact.words[1], 1) ^ static_cast<uint64_t>(layout.side));
    for (int64_t i = 0; i + 8 <= layout.page_bytes; i += 8) {
      const uint64_t word = sum + static_cast<uint64_t>(i);
      std::memcpy(page + i, &word, sizeof(word));
    }
  }

  void Dequantize(const PageLayout& layout, const PageSide& page, int first, int last, float* out) const override {
    const int64_t n = layout.row_values();
    uint64_t sum = 0;
    if (page.sealed != nullptr) std::memcpy(&sum, page.sealed, sizeof(sum));
    int64_t exact_row = 0;
    for (int t = 0; t < first; ++t) exact_row += page.exact.Test(t);
    for (int t = first; t < last; ++t, out += n) {
      const f16_bits* row = nullptr;
      if (page.rows != nullptr) row = page.rows + t * n;
      if (page.sealed != nullptr && page.exact.Test(t)) row = page.exact_rows + exact_row++ * n;
      for (int64_t i = 0; i < n; ++i) {
        out[i] = row != nullptr ? F32FromF16(row[i])
                                : static_cast<float>((sum + static_cast<uint64_t>(t * 31 + i)) % 509) / 16.0f - 8.0f;
      }
    }
  }

  void AddQueries(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride) const override {
    moment.set_count(moment.count() + int64_t{(qo_len + stride - 1) / stride} * num_qo_heads);
  }

  WorkspaceBytes Workspace(const LayerFormat&, int) const override { return {}; }

  void Attend(const AttendArgs& args, Executor& executor) const override {
    CheckAttendArgs(args);
    const PageLayout& layout = args.format->k;
    const int64_t n = layout.row_values();
    int64_t num_keys = 0;
    for (const AttendPage& page : args.pages) num_keys = std::max(num_keys, page.first_key + page.num_tokens);
    std::vector<float> k(static_cast<size_t>(num_keys * n), std::numeric_limits<float>::quiet_NaN()), v = k;
    for (const AttendPage& page : args.pages) {
      Dequantize(args.format->k, page.k, 0, page.num_tokens, k.data() + page.first_key * n);
      Dequantize(args.format->v, page.v, 0, page.num_tokens, v.data() + page.first_key * n);
    }
    const int head_dim = layout.shape.head_dim;
    const int gqa_ratio = args.num_qo_heads / layout.shape.num_kv_heads;
    executor.Run(int64_t{args.qo_len} * args.num_qo_heads, [&](int64_t task, int) {
      const int64_t i = task / args.num_qo_heads, h = task % args.num_qo_heads;
      const int64_t at = h / gqa_ratio * head_dim;
      PlainAttention(args.q.data + i * args.q.token_stride + h * args.q.head_stride, k.data() + at, v.data() + at,
                     std::min(num_keys, args.causal_base + i + 1), n, head_dim, double{args.softmax_scale},
                     args.out.data + i * args.out.token_stride + h * args.out.head_stride);
    });
  }
};

}  // namespace kvrazor::test
