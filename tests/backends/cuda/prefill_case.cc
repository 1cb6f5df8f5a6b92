#include "tests/backends/cuda/prefill_case.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "src/core/half.h"

namespace kvrazor::cuda {

namespace {

int Pages(int tokens) { return (tokens + kPageTokens - 1) / kPageTokens; }

}  // namespace

PrefillCase::PrefillCase(const PrefillShape& shape)
    : RandomPages(shape.recipe, {shape.num_kv_heads, shape.head_dim}, shape.key_size, kPackedComputeMajor, shape.seed),
      shape_(shape) {
  for (int b = 0; b < batch_size(); ++b) AddSinks();
  max_pages_ = 1;
  new_begin_ = {0};
  int longest = 0;
  for (int b = 0; b < batch_size(); ++b) {
    max_pages_ = std::max(max_pages_, Pages(shape.sequences[b].kv_len));
    new_begin_.push_back(new_begin_.back() + shape.sequences[b].new_len);
    longest = std::max(longest, Total(b));
  }
  mask_stride_ = int64_t{Pages(longest)} * kPageTokens;
  q_ = ModelRows(num_new(), num_qo_heads(), 1, 0);
  k_ = ModelRows(num_new(), shape.num_kv_heads, shape.key_size, 1);
  v_ = ModelRows(num_new(), shape.num_kv_heads, 1, 0.2f);
  std::normal_distribution<float> normal;
  for (int h = 0; h < num_qo_heads(); ++h) sink_logits_.push_back(2 + 2 * normal(random_));
  MakeTables(shape.seed);
  if (shape.masked) MakeMask();
}

int PrefillCase::Total(int b) const {
  const auto& [kv_len, new_len] = shape_.sequences[b];
  return kv_len + (shape_.new_rows_in_pages ? 0 : new_len);
}

std::vector<int32_t> PrefillCase::kv_len() const {
  std::vector<int32_t> lengths;
  for (const auto& s : shape_.sequences) lengths.push_back(s.kv_len);
  return lengths;
}

double PrefillCase::Value(f16_bits x) const { return ValueOf(x, shape_.bf16); }

void PrefillCase::MakeMask() {
  std::uniform_real_distribution<float> uniform;
  mask_.assign(static_cast<size_t>(num_new() * mask_stride_), kNaN);  // behind the end: never read
  for (int b = 0; b < batch_size(); ++b) {
    std::vector<bool> hidden_page(static_cast<size_t>(Pages(Total(b))));
    for (int i = new_begin_[b]; i < new_begin_[b + 1]; ++i) {
      if ((i - new_begin_[b]) % 40 ==
          0) {  // other pages now and then: tiles of query rows differ in what they may skip
        for (size_t p = 0; p < hidden_page.size(); ++p) hidden_page[p] = uniform(random_) < 0.4f;
      }
      const bool sees_nothing = uniform(random_) < 0.03f;
      f16_bits* row = &mask_[static_cast<size_t>(i * mask_stride_)];
      for (int t = 0; t < Total(b); ++t) {
        const float u = uniform(random_);
        const bool hidden = sees_nothing || hidden_page[t / kPageTokens] || u < 0.3f;
        row[t] = hidden ? kMinusInfinity : F16FromF32(u < 0.6f ? 0.f : 4 * u - 3);
      }
    }
  }
}

std::vector<f16_bits> PrefillCase::ModelRows(int num_tokens, int num_heads, float size, float offset) {
  std::normal_distribution<float> normal;
  const int row = num_heads * shape_.head_dim;
  std::vector<f16_bits> rows;
  for (int t = 0; t < num_tokens; ++t) {
    for (int i = 0; i < row; ++i) {
      const float x = size * normal(random_) + offset * static_cast<float>(i % shape_.head_dim % 5 - 2);
      rows.push_back(shape_.bf16 ? Bf16FromF32(x) : F16FromF32(x));
    }
    rows.insert(rows.end(), static_cast<size_t>(shape_.padding), f16_bits{0xffff});  // NaN in both
  }
  return rows;
}

void PrefillCase::MakeTables(uint32_t seed) {
  std::mt19937 random(seed);
  std::uniform_real_distribution<double> share;
  page_table_.assign(static_cast<size_t>(batch_size()) * max_pages_,
                     0x3fffffff);  // far out of the pool: entries behind the end are not read
  for (int b = 0; b < batch_size(); ++b) {
    const int len = shape_.sequences[b].kv_len;
    const int sealed = shape_.packed_to_the_end ? Pages(len) : std::max(0, len - shape_.window) / kPageTokens;
    for (int p = 0; p < Pages(len); ++p) {
      const int tokens = std::min(kPageTokens, len - p * kPageTokens);
      const int any = static_cast<int>(random() % kDistinctPages);
      const bool rows = p >= sealed || (tokens == kPageTokens && share(random) < shape_.row_page_share);
      page_table_[static_cast<size_t>(b) * max_pages_ + p] =
          !rows ? any : ~(tokens < kPageTokens ? AddRowPage(tokens) : any);
    }
  }
}

void PrefillCase::Shuffle(const std::vector<PrefillShape::Sequence>& sequences, uint32_t seed) {
  shape_.sequences = sequences;
  new_begin_ = {0};
  for (const auto& s : sequences) new_begin_.push_back(new_begin_.back() + s.new_len);
  MakeTables(seed);
}

PrefillSpec PrefillCase::spec() const {
  return {.format = format_,
          .num_qo_heads = num_qo_heads(),
          .max_batch_size = batch_size(),
          .max_pages = max_pages_,
          .max_new_tokens = std::max(1, num_new()),
          .workspace_tokens = shape_.workspace_tokens,
          .sink_tokens = recipe_.sink_tokens,
          .softmax_scale = 1 / std::sqrt(static_cast<float>(shape_.head_dim)),
          .new_rows_in_pages = shape_.new_rows_in_pages,
          .causal = shape_.causal,
          .sliding_window = shape_.sliding_window,
          .softcap = shape_.softcap,
          .masked = shape_.masked,
          .learned_sinks = shape_.learned_sinks,
          .bf16 = shape_.bf16};
}

PrefillCase::Values PrefillCase::SequenceRows(int b, int head) const {
  const int dim = shape_.head_dim, total = Total(b), kv_len = shape_.sequences[b].kv_len;
  Values rows{std::vector<double>(static_cast<size_t>(total) * dim),
              std::vector<double>(static_cast<size_t>(total) * dim)};
  for (int t = 0; t < total; ++t) {
    const Values* from = nullptr;
    if (t < kv_len) {
      const int32_t entry = page_table_[static_cast<size_t>(b) * max_pages_ + t / kPageTokens];
      const bool is_sink = entry >= 0 && t < recipe_.sink_tokens;
      from = is_sink ? &sink_values_[b] : entry >= 0 ? &packed_values_[entry] : &row_values_[~entry];
    }
    for (int c = 0; c < dim; ++c) {
      const int64_t fresh = (new_begin_[b] + t - kv_len) * kv_stride() + int64_t{head} * dim + c;
      const int64_t old = Row(t % kPageTokens, head) + c;
      rows.k[static_cast<size_t>(c) * total + t] = from ? from->k[old] : Value(k_[fresh]);
      rows.v[static_cast<size_t>(t) * dim + c] = from ? from->v[old] : Value(v_[fresh]);
    }
  }
  return rows;
}

void PrefillCase::AppendRow(int b, int i, int head, const Values& rows, PrefillExpected& want) const {
  const int dim = shape_.head_dim, total = Total(b), new_len = shape_.sequences[b].new_len;
  const int end = shape_.causal ? total - (new_len - 1 - i) : total;
  const int begin = shape_.sliding_window > 0 ? std::max(0, end - shape_.sliding_window) : 0;
  const int64_t token = new_begin_[b] + i;
  const f16_bits* q = &q_[static_cast<size_t>(token * qo_stride() + int64_t{head} * dim)];
  std::vector<double> logits(static_cast<size_t>(std::max(0, end))), sizes(logits.size());
  for (int c = 0; c < dim; ++c) {
    const double x = Value(q[c]) / std::sqrt(static_cast<double>(dim));
    const double* k = &rows.k[static_cast<size_t>(c) * total];
    for (int t = begin; t < end; ++t) {
      logits[t] += x * k[t];
      sizes[t] += std::abs(x * k[t]);
    }
  }
  double top = shape_.learned_sinks ? sink_logits_[head] : -std::numeric_limits<double>::infinity();
  for (int t = begin; t < end; ++t) {
    double& logit = logits[t];
    if (shape_.softcap > 0) logit = shape_.softcap * std::tanh(logit / shape_.softcap);
    if (shape_.masked) {
      const f16_bits x = mask_[static_cast<size_t>(token * mask_stride_ + t)];
      logit = x == kMinusInfinity ? -std::numeric_limits<double>::infinity() : logit + F32FromF16(x);
    }
    top = std::max(top, logit);
  }
  double sum = shape_.learned_sinks ? std::exp(sink_logits_[head] - top) : 0;
  std::vector<double> out(static_cast<size_t>(dim));
  for (int t = begin; t < end; ++t) {
    const double p = std::isinf(logits[t]) ? 0 : std::exp(logits[t] - top);
    logits[t] = p;
    sum += p;
    const double* v = &rows.v[static_cast<size_t>(t) * dim];
    for (int c = 0; c < dim; ++c) out[c] += p * v[c];
  }
  for (double& x : out) x = sum > 0 ? x / sum : 0;
  want.out.insert(want.out.end(), out.begin(), out.end());
  // A key rounded to f16 moves a logit by 2^-11 of the sum of its terms' sizes at most, and that, with the weight's own rounding, moves
  // the output by p (v - out); values and output are rounded too. Second order and f32 sums: a fifth on top.
  std::vector<double> moved(static_cast<size_t>(dim));
  for (int t = begin; t < end && sum > 0; ++t) {
    const double p = logits[t] / sum, logit_error = 0x1p-11 * (sizes[t] + 1);
    const double* v = &rows.v[static_cast<size_t>(t) * dim];
    for (int c = 0; c < dim; ++c) moved[c] += p * (logit_error * std::abs(v[c] - out[c]) + 0x1p-11 * std::abs(v[c]));
  }
  double rounding = 0;
  for (int c = 0; c < dim; ++c) rounding += std::pow(moved[c] + 0x1p-11 * std::abs(out[c]), 2);
  want.rounding.push_back(1.2 * std::sqrt(rounding));
  want.lse.push_back(sum > 0 ? top + std::log(sum) : -std::numeric_limits<double>::infinity());
}

PrefillExpected PrefillCase::Reference() const {
  PrefillExpected want;
  for (int b = 0; b < batch_size(); ++b) {
    std::vector<Values> rows;
    for (int h = 0; h < shape_.num_kv_heads; ++h) rows.push_back(SequenceRows(b, h));
    for (int i = 0; i < shape_.sequences[b].new_len; ++i) {
      for (int head = 0; head < num_qo_heads(); ++head) AppendRow(b, i, head, rows[head / shape_.gqa_ratio], want);
    }
  }
  return want;
}

PrefillCase::OnDevice::OnDevice(const PrefillCase& c, const PrefillPlan& plan)
    : packed_pages(c.packed_pages_),
      row_pages(c.row_pages_),
      sink_rows(c.sink_rows_),
      workspace(static_cast<size_t>(plan.workspace_bytes())),
      page_table(c.page_table_),
      kv_len(c.kv_len()),
      new_begin(c.new_begin_),
      q(c.q_),
      k(c.k_),
      v(c.v_),
      out(static_cast<size_t>((c.num_new() + kGuardRows) * c.qo_stride())),
      mask(c.mask_),
      lse(static_cast<size_t>((c.num_new() + kGuardRows) * c.num_qo_heads())),
      sink_logits(c.sink_logits_),
      new_rows_in_pages(c.shape_.new_rows_in_pages) {
  shape.q_stride = shape.out_stride = c.qo_stride();
  shape.kv_stride = c.kv_stride();
  shape.mask_stride = c.mask_stride_;
  shape.batch_size = c.batch_size();
  CheckCuda(cudaDeviceSynchronize());
}

void PrefillCase::OnDevice::Poison() {
  out.Fill(0xff);
  lse.Fill(0xff);
  workspace.Fill(0xff);
}

PrefillArrays PrefillCase::OnDevice::arrays() const {
  PrefillArrays a = shape;
  a.packed_pages = packed_pages.data();
  a.row_pages = row_pages.data();
  a.sink_rows = sink_rows.data();
  a.page_table = page_table.data();
  a.kv_len = kv_len.data();
  a.new_begin = new_begin.data();
  a.q = q.data();
  a.k = new_rows_in_pages ? nullptr : k.data();
  a.v = new_rows_in_pages ? nullptr : v.data();
  a.out = out.data();
  a.lse = lse.data();
  a.sink_logits = sink_logits.data();
  a.mask = mask.data();
  a.workspace = workspace.data();
  return a;
}

}  // namespace kvrazor::cuda
