#include "tests/backends/cuda/attend_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/core/half.h"

namespace kvrazor::cuda {

AttendCase::AttendCase(const CaseShape& shape)
    : RandomPages(shape.recipe, {shape.num_kv_heads, shape.head_dim}, shape.key_size, shape.compute_major, shape.seed),
      shape_(shape) {
  for (int b = 0; b < batch_size(); ++b) AddSinks();
  std::normal_distribution<float> normal;
  q_.resize(static_cast<size_t>(batch_size()) * shape.qo_len * num_qo_heads() * shape.head_dim);
  for (f16_bits& x : q_) x = shape.bf16 ? Bf16FromF32(normal(random_)) : F16FromF32(normal(random_));
  for (int h = 0; h < num_qo_heads(); ++h) sink_logits_.push_back(2 + 2 * normal(random_));
  const int longest = *std::max_element(shape_.kv_len.begin(), shape_.kv_len.end());
  max_pages_ = std::max(1, (longest + kPageTokens - 1) / kPageTokens);
  MakeTables(shape.seed);
  if (shape.masked) MakeMask();
}

double AttendCase::Value(f16_bits x) const { return ValueOf(x, shape_.bf16); }

void AttendCase::MakeMask() {
  std::uniform_real_distribution<float> uniform;
  mask_.assign(static_cast<size_t>(batch_size() * shape_.qo_len * mask_stride()), kNaN);  // behind the end: never read
  for (int b = 0; b < batch_size(); ++b) {
    std::vector<bool> hidden_page(static_cast<size_t>(max_pages_));
    for (size_t p = 0; p < hidden_page.size(); ++p) hidden_page[p] = uniform(random_) < 0.4f;
    for (int i = 0; i < shape_.qo_len; ++i) {
      f16_bits* row = &mask_[static_cast<size_t>((b * shape_.qo_len + i) * mask_stride())];
      for (int t = 0; t < shape_.kv_len[b]; ++t) {
        const float u = uniform(random_);
        row[t] = hidden_page[t / kPageTokens] || u < 0.3f ? kMinusInfinity : F16FromF32(u < 0.6f ? 0.f : 4 * u - 3);
      }
    }
  }
}

bool AttendCase::Sees(int sequence, int new_token, int token) const {
  const int end = shape_.kv_len[sequence] - (shape_.masked ? 0 : shape_.qo_len - 1 - new_token);
  return token < end && (shape_.sliding_window == 0 || token >= end - shape_.sliding_window);
}

void AttendCase::MakeTables(uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> share;
  page_table_.assign(static_cast<size_t>(batch_size()) * max_pages_,
                     0x3fffffff);  // far out of the pool: entries behind the end are not read
  row_start_.clear();
  for (int b = 0; b < batch_size(); ++b) {
    const int len = shape_.kv_len[b];
    const int pages = (len + kPageTokens - 1) / kPageTokens;
    const int sealed = std::max(0, len - shape_.window) / kPageTokens;
    for (int p = 0; p < pages; ++p) {
      const int tokens = std::min(kPageTokens, len - p * kPageTokens);
      int32_t& entry = page_table_[static_cast<size_t>(b) * max_pages_ + p];
      const bool rows = p >= sealed || share(random) < shape_.row_page_share;
      if (!rows) {
        entry = static_cast<int32_t>(random() % kDistinctPages);
      } else {
        entry = ~(tokens < kPageTokens ? AddRowPage(tokens) : static_cast<int32_t>(random() % kDistinctPages));
      }
    }
    const int hint = shape_.wrong_hint ? static_cast<int>(random() % (pages + 2)) : sealed;
    row_start_.push_back(hint * kPageTokens);
  }
}

void AttendCase::Shuffle(const std::vector<int>& kv_len, uint32_t seed) {
  shape_.kv_len = kv_len;
  MakeTables(seed);
}

AttendSpec AttendCase::spec() const {
  return {.format = format_,
          .num_qo_heads = num_qo_heads(),
          .max_batch_size = batch_size(),
          .max_pages = max_pages_,
          .sink_tokens = recipe_.sink_tokens,
          .softmax_scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
          .qo_len = shape_.qo_len,
          .causal = !shape_.masked,
          .sliding_window = shape_.sliding_window,
          .softcap = shape_.softcap,
          .masked = shape_.masked,
          .learned_sinks = shape_.learned_sinks,
          .bf16 = shape_.bf16,
          .ring_stages = shape_.ring_stages};
}

void AttendCase::AppendRow(int b, int i, int head, Expected& want) const {
  const int dim = shape_.head_dim;
  const int kv_head = head / shape_.gqa_ratio;
  const f16_bits* q = &q_[((static_cast<size_t>(b) * shape_.qo_len + i) * num_qo_heads() + head) * dim];
  std::vector<double> out(static_cast<size_t>(dim));
  double top = -std::numeric_limits<double>::infinity();
  double sum = 0;
  if (shape_.learned_sinks) {
    top = sink_logits_[head];
    sum = 1;
  }
  for (int t = 0; t < shape_.kv_len[b]; ++t) {
    if (!Sees(b, i, t)) continue;
    const int32_t entry = page_table_[static_cast<size_t>(b) * max_pages_ + t / kPageTokens];
    const bool is_sink = entry >= 0 && t < recipe_.sink_tokens;
    const Values& values = is_sink ? sink_values_[b] : entry >= 0 ? packed_values_[entry] : row_values_[~entry];
    const double* k = &values.k[Row(t % kPageTokens, kv_head)];
    const double* v = &values.v[Row(t % kPageTokens, kv_head)];
    double logit = 0;
    for (int c = 0; c < dim; ++c) logit += Value(q[c]) * k[c];
    logit /= std::sqrt(static_cast<double>(dim));
    if (shape_.softcap > 0) logit = shape_.softcap * std::tanh(logit / shape_.softcap);
    if (shape_.masked) {
      const f16_bits x = mask_[static_cast<size_t>((b * shape_.qo_len + i) * mask_stride() + t)];
      if (x == kMinusInfinity) continue;
      logit += F32FromF16(x);
    }
    if (logit > top) {
      const double factor = std::exp(top - logit);
      for (double& x : out) x *= factor;
      sum *= factor;
      top = logit;
    }
    const double p = std::exp(logit - top);
    sum += p;
    for (int c = 0; c < dim; ++c) out[c] += p * v[c];
  }
  for (const double x : out) want.out.push_back(sum > 0 ? x / sum : 0);
  want.lse.push_back(top + std::log(sum));
}

Expected AttendCase::Reference() const {
  Expected want;
  for (int b = 0; b < batch_size(); ++b) {
    for (int i = 0; i < shape_.qo_len; ++i) {
      for (int head = 0; head < num_qo_heads(); ++head) AppendRow(b, i, head, want);
    }
  }
  return want;
}

AttendCase::OnDevice::OnDevice(const AttendCase& c, const AttendPlan& plan)
    : packed_pages(c.packed_pages_),
      row_pages(c.row_pages_),
      sink_rows(c.sink_rows_),
      workspace(static_cast<size_t>(plan.workspace_bytes())),
      page_table(c.page_table_),
      kv_len(std::vector<int32_t>(c.shape_.kv_len.begin(), c.shape_.kv_len.end())),
      row_start(c.row_start_),
      q(c.q_),
      out(c.q_.size()),
      mask(c.mask_),
      lse(c.q_.size() / static_cast<size_t>(c.shape_.head_dim)),
      sink_logits(c.sink_logits_),
      mask_stride(c.mask_stride()) {
  plan.InitWorkspace(workspace.data(), nullptr);
  CheckCuda(cudaDeviceSynchronize());
}

void AttendCase::OnDevice::Poison() {
  out.Fill(0xff);
  lse.Fill(0xff);
}

AttendArrays AttendCase::OnDevice::arrays() const {
  return {.packed_pages = packed_pages.data(),
          .row_pages = row_pages.data(),
          .sink_rows = sink_rows.data(),
          .page_table = page_table.data(),
          .kv_len = kv_len.data(),
          .row_start = row_start.data(),
          .q = q.data(),
          .out = out.data(),
          .lse = lse.data(),
          .sink_logits = sink_logits.data(),
          .mask = mask.data(),
          .workspace = workspace.data(),
          .mask_stride = mask_stride};
}

}  // namespace kvrazor::cuda
