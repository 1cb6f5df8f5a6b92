#include "reference/backend.h"

#include <cstring>
#include <string>
#include <vector>

#include "kvrazor/error.h"
#include "reference/attend.h"
#include "reference/codes.h"
#include "reference/dequantize.h"
#include "reference/rotate.h"
#include "reference/seal_affine.h"
#include "reference/seal_codebook.h"
#include "reference/seal_razor_key.h"
#include "reference/seal_razor_value.h"
#include "reference/second_moment.h"

namespace kvrazor {
namespace reference {
namespace {

class Float64Backend final : public Backend {
 public:
  const char* name() const override { return "reference"; }
  std::string description() const override { return "float64, plain loops"; }

  void Rotate(float* x, int64_t num_rows, int head_dim) const override {
    for (int64_t row = 0; row < num_rows; ++row) {
      float* head = x + row * head_dim;
      std::vector<double> wide(head, head + head_dim);
      RotateHead(wide.data(), head_dim);
      for (int c = 0; c < head_dim; ++c) head[c] = static_cast<float>(wide[c]);
    }
  }

  void Seal(const PageLayout& layout, const f16_bits* rows, const TokenMask& exact, const SecondMoment* moment,
            std::byte* page) const override {
    std::memset(page, 0, static_cast<size_t>(layout.page_bytes));
    switch (layout.recipe.codec) {
      case Codec::kF16: throw Error("seal: 16-bit pages are never sealed; keep their rows.");
      case Codec::kAffine: return SealAffine(layout, Rows(layout, rows), exact, page);
      case Codec::kCodebook: return SealCodebook(layout, Rows(layout, rows), exact, page);
      case Codec::kRazorKey: return SealRazorKey(layout, Rows(layout, rows), exact, moment, page);
      case Codec::kRazorValue: return SealRazorValue(layout, Rows(layout, rows), exact, page);
    }
  }

  void Dequantize(const PageLayout& layout, const PageSide& page, int first, int last, float* out) const override {
    for (int t = first; t < last; ++t) {
      for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
        for (const Sum& x : DequantizeHead(layout, page, t, h)) *out++ = static_cast<float>(x.value);
      }
    }
  }

  void AddQueries(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride) const override {
    const HeadShape shape = moment.shape();
    const std::vector<Sum> added = QueryMoment(shape, q, qo_len, num_qo_heads, stride);
    const size_t values = static_cast<size_t>(shape.head_dim) * static_cast<size_t>(shape.head_dim);
    std::vector<float> square(values);
    for (int h = 0; h < shape.num_kv_heads; ++h) {
      for (size_t i = 0; i < values; ++i)
        square[i] = static_cast<float>(added[static_cast<size_t>(h) * values + i].value);
      moment.Add(h, square.data());
    }
    moment.AddCount(QueryCount(shape, q, qo_len, num_qo_heads, stride));
  }

  WorkspaceBytes Workspace(const LayerFormat&, int) const override { return {}; }

  void Attend(const AttendArgs& args, Executor& executor) const override {
    CheckAttendArgs(args);
    const int gqa_ratio = args.num_qo_heads / args.format->k.shape.num_kv_heads;
    for (int h = 0; h < args.num_qo_heads; ++h) {
      const HeadTokens tokens = ReadTokens(args, h / gqa_ratio);
      for (int t = 0; t < args.qo_len; ++t) {
        const Attention row = AttendRow(args, tokens, t, h);
        float* out = args.out.data + t * args.out.token_stride + h * args.out.head_stride;
        for (size_t c = 0; c < row.out.size(); ++c) out[c] = static_cast<float>(row.out[c]);
        if (args.lse) args.lse[int64_t{t} * args.num_qo_heads + h] = static_cast<float>(row.lse);
      }
    }
  }
};

}  // namespace
}  // namespace reference

const Backend& ReferenceBackend() {
  static const reference::Float64Backend backend;
  return backend;
}

}  // namespace kvrazor
