// Attend against float64, from the same bytes. The bound, per query row, with u = 2^-24:
//   logit    sealed keys: the operand (the query, or query times scale) is rounded to 16-bit fixed point, an error of
//            at most largest / 65024 for each channel, weighted with the codes; Gamma(head_dim + ..) sum |q| |k|
//   weight   p (e^(d + mean d) - 1) for a logit off by d, the exponential, and sums over all tokens
//   output   the weights' errors on the values; sealed values: the operand (weight, times norm or scale) rounded as
//            above, within each page; Gamma(tokens + ..) sum p |v|
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <limits>
#include <ostream>

#include "reference/attend.h"
#include "reference/backend.h"
#include "reference/codes.h"
#include "reference/half.h"
#include "reference/rotate.h"
#include "reference/seal_codebook.h"
#include "tests/conformance/cases.h"

namespace kvrazor::conformance {
namespace {

constexpr double kOperandSteps = 65024;     // 2 * 127 * 256: a rounding errs by largest / this
constexpr double kExponentialError = 4e-7;  // relative, of 2^x in f32
constexpr double kHidden = -std::numeric_limits<double>::infinity();

/// What one call looks like beside its method and shape.
struct Scene {
  const char* name;
  int kv_len;
  int qo_len;
  int gqa_ratio;
  int open_pages = 1;     // newest pages in 16-bit rows
  int sinks = 0;          // exact tokens of the first page
  bool outliers = false;  // exact tokens in all sealed pages, others for values than for keys
  bool mask = false;      // a ragged f16 mask with -inf, else causal
  bool slopes = false;
  bool sink_logits = false;
  float softcap = 0;
  bool shuffle = false;  // pages in another order
  int threads = 1;
};

constexpr Scene kScenes[] = {
    {.name = "OneKey", .kv_len = 1, .qo_len = 1, .gqa_ratio = 1},
    {.name = "OneSealedPage", .kv_len = 128, .qo_len = 1, .gqa_ratio = 4, .open_pages = 0},
    {.name = "PagePlusOne", .kv_len = 129, .qo_len = 1, .gqa_ratio = 3, .sinks = 4},
    {.name = "PageLessOne", .kv_len = 127, .qo_len = 2, .gqa_ratio = 2},
    {.name = "TwoPagesLessOne", .kv_len = 255, .qo_len = 3, .gqa_ratio = 4, .sinks = 1, .sink_logits = true},
    {.name = "TwoPagesPlusOne", .kv_len = 257, .qo_len = 1, .gqa_ratio = 8, .sinks = 4, .softcap = 30},
    {.name = "SealedAndRagged",
     .kv_len = 300,
     .qo_len = 5,
     .gqa_ratio = 3,
     .sinks = 4,
     .outliers = true,
     .mask = true,
     .slopes = true},
    {.name = "AllSealedMasked",
     .kv_len = 256,
     .qo_len = 4,
     .gqa_ratio = 2,
     .open_pages = 0,
     .mask = true,
     .shuffle = true},
    {.name = "Sixteen", .kv_len = 144, .qo_len = 17, .gqa_ratio = 1, .sinks = 128, .threads = 2},
    {.name = "Prefill", .kv_len = 208, .qo_len = 33, .gqa_ratio = 2, .open_pages = 1, .sinks = 4, .threads = 3},
    {.name = "ManyPages",
     .kv_len = 1100,
     .qo_len = 1,
     .gqa_ratio = 2,
     .open_pages = 2,
     .sinks = 4,
     .outliers = true,
     .shuffle = true,
     .threads = 2},
    {.name = "NoPages", .kv_len = 0, .qo_len = 2, .gqa_ratio = 2, .sink_logits = true},
};

/// A sequence of pages in memory, some sealed, and the arguments of a call.
class Sequence {
 public:
  Sequence(const Recipe& recipe, HeadShape shape, const Scene& scene, uint32_t seed)
      : shape_(shape), scene_(scene), random_(seed) {
    format_ = {MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)};
    const int num_pages = (scene.kv_len + kPageTokens - 1) / kPageTokens;
    for (int p = 0; p < num_pages; ++p) {
      const int num_tokens = std::min(kPageTokens, scene.kv_len - p * kPageTokens);
      const bool sealed = num_tokens == kPageTokens && p < num_pages - scene.open_pages;
      pages_.push_back({.k = MakeSide(format_.k, sealed, p),
                        .v = MakeSide(format_.v, sealed, p),
                        .num_tokens = num_tokens,
                        .first_key = int64_t{p} * kPageTokens});
    }
    if (scene.shuffle) std::reverse(pages_.begin(), pages_.end());
    MakeArgs();
  }
  Sequence(const Sequence&) = delete;
  Sequence& operator=(const Sequence&) = delete;

  const AttendArgs& args() const { return args_; }
  const LayerFormat& format() const { return format_; }

 private:
  TokenMask ExactTokens(Side which, int p) const {
    TokenMask exact;
    for (int t = 0; p == 0 && t < scene_.sinks; ++t) exact.Set(t);
    for (int t = 0; scene_.outliers && t < kPageTokens; ++t) {
      if ((37 * t + 11 * p + 5 * static_cast<int>(which)) % 31 == 0 || (t == kPageTokens - 1 && p == 1)) exact.Set(t);
    }
    return exact;
  }

  PageSide MakeSide(const PageLayout& layout, bool sealed, int p) {
    TestPage page = MakeTestPage(shape_, PageKind::kOutliers, random_());
    PageSide side;
    if (!sealed || layout.page_bytes == 0) {
      rows_.push_back(std::move(page.rows));
      side.rows = rows_.back().data();
      return side;
    }
    side.exact = ExactTokens(layout.side, p);
    for (int t = 0; t < kPageTokens; ++t) {
      if (!side.exact.Test(t)) continue;
      page.exact_rows.insert(page.exact_rows.end(), page.rows.begin() + t * layout.row_values(),
                             page.rows.begin() + (t + 1) * layout.row_values());
    }
    sealed_.push_back(std::make_unique<Guarded<std::byte>>(layout.page_bytes, 0));
    // Sealed as if they were not exact: what a page stores of exact tokens means nothing and must not be read.
    ReferenceBackend().Seal(layout, page.rows.data(), TokenMask{}, nullptr, sealed_.back()->data());
    rows_.push_back(std::move(page.exact_rows));
    side.sealed = sealed_.back()->data();
    side.exact_rows = rows_.back().data();
    return side;
  }

  void MakeArgs() {
    std::normal_distribution<float> normal;
    args_.format = &format_;
    args_.pages = pages_;
    args_.num_qo_heads = shape_.num_kv_heads * scene_.gqa_ratio;
    args_.qo_len = scene_.qo_len;
    args_.softmax_scale = 0.5f / std::sqrt(static_cast<float>(shape_.head_dim));
    args_.logit_softcap = scene_.softcap;
    args_.causal_base = scene_.kv_len - scene_.qo_len;
    const int64_t head_stride = shape_.head_dim + 7;
    const int64_t token_stride = head_stride * args_.num_qo_heads + 3;
    q_.assign(static_cast<size_t>(token_stride * scene_.qo_len), 0.0f);
    for (float& x : q_) x = 0.4f * normal(random_);
    args_.q = {q_.data(), token_stride, head_stride};
    if (scene_.mask) {
      args_.mask_stride = scene_.kv_len + 5;
      mask_.assign(static_cast<size_t>(args_.mask_stride * scene_.qo_len), 0xfc00);
      for (int i = 0; i < scene_.qo_len; ++i) {
        for (int j = 0; j < scene_.kv_len - 3 * i; ++j) {
          const bool hidden = i == 1 || j % 11 == 7 || (j >= 64 && j < 96 && i == 2);  // one row that sees nothing
          mask_[i * args_.mask_stride + j] = hidden ? 0xfc00 : j % 5 == 0 ? reference::EncodeF16(-0.01 * j) : 0;
        }
      }
      args_.mask = mask_.data();
    }
    for (int h = 0; h < args_.num_qo_heads; ++h) {
      slopes_.push_back(std::exp2(-0.5f * static_cast<float>(h)));
      sinks_.push_back(normal(random_));
    }
    if (scene_.slopes) args_.alibi_slopes = slopes_.data();
    if (scene_.sink_logits) args_.sink_logits = sinks_.data();
  }

  HeadShape shape_;
  Scene scene_;
  std::mt19937 random_;
  LayerFormat format_;
  std::vector<std::vector<f16_bits>> rows_;
  std::vector<std::unique_ptr<Guarded<std::byte>>> sealed_;
  std::vector<AttendPage> pages_;
  std::vector<float> q_, slopes_, sinks_;
  std::vector<f16_bits> mask_;
  AttendArgs args_;
};

bool IsPacked(const PageSide& side, int token) { return side.sealed && !side.exact.Test(token); }

/// Size of the code of a value, about the middle where the codec is centred, in the kernel's units of it.
double CodeSize(const PageLayout& layout, const std::byte* page, int head, int token, int channel) {
  const int code = reference::GetCode(layout, page, head, token, channel);
  if (layout.recipe.codec == Codec::kAffine) return code;
  if (layout.recipe.codec == Codec::kCodebook) {
    static const reference::GridLevels grids[] = {reference::CodebookLevels(2), reference::CodebookLevels(3),
                                                  reference::CodebookLevels(4)};
    return std::abs(grids[layout.recipe.bits - 2].levels[static_cast<size_t>(code)]);
  }
  return std::abs(code - 0.5 * ((1 << layout.recipe.bits) - 1));
}

/// What rounding the operand adds to q.k of a packed token.
double KeyOperandError(const PageLayout& layout, const PageSide& page, int head, int token,
                       const std::vector<double>& q) {
  const bool affine = layout.recipe.codec == Codec::kAffine;
  const bool per_token = affine && layout.recipe.axis == Axis::kPerToken;
  double codes = 0, largest = 0;
  for (int c = 0; c < layout.shape.head_dim; ++c) {
    double inside = 1, around = 1;  // scales in the operand, and on the integer sums
    if (affine) {
      const int64_t group = per_token ? int64_t{c / layout.recipe.group_size} * kPageTokens + token
                                      : int64_t{token / layout.recipe.group_size} * layout.shape.head_dim + c;
      (per_token ? around : inside) =
          reference::DecodeF16(reference::GetU16(layout, page.sealed, head, layout.scale_at, group));
    }
    codes += around * CodeSize(layout, page.sealed, head, token, c);
    largest = std::max(largest, std::abs(q[c]) * inside);
  }
  double outside = 1;
  if (layout.recipe.codec == Codec::kRazorKey) {
    outside = reference::DecodeE3M5(reference::GetU8(layout, page.sealed, head, layout.scale_at, token),
                                    reference::GetHeadScalar(layout, page.sealed, head, 1));
  } else if (layout.recipe.codec == Codec::kCodebook) {
    outside = reference::DecodeF16(reference::GetU16(layout, page.sealed, head, layout.norm_at, token));
  } else if (layout.token_scale_at >= 0) {
    outside = reference::DecodeF16(reference::GetTokenScale(layout, page.sealed, token));
  }
  return outside * codes * largest / kOperandSteps;
}

/// What rounding the operand adds to each (stored) channel of a page's part of the output.
///   weights [num_tokens] of the page
std::vector<double> ValueOperandError(const PageLayout& layout, const AttendPage& page, int head,
                                      const double* weights) {
  const int dim = layout.shape.head_dim;
  const std::byte* bytes = page.v.sealed;
  const double half = 0.5 * ((1 << layout.recipe.bits) - 1);
  const bool razor = layout.recipe.codec == Codec::kRazorValue;
  std::vector<double> error(static_cast<size_t>(dim));
  for (int c = 0; c < dim; ++c) {
    double codes = 0, largest = 0;
    for (int t = 0; t < page.num_tokens; ++t) {
      if (!IsPacked(page.v, t)) continue;
      const int code = reference::GetCode(layout, bytes, head, t, c);
      if (razor) {
        const int64_t at = int64_t{t / layout.tokens_per_group()} * dim + c;
        const double scale = reference::DecodeE5M3(reference::GetU8(layout, bytes, head, layout.scale_at, at));
        const double centre =
            static_cast<int8_t>(reference::GetU8(layout, bytes, head, layout.centre_at, at)) / 8.0 - half;
        codes += scale * std::abs(code + centre);
        largest = std::max(
            largest, weights[t] * reference::DecodeE5M3(reference::GetU8(layout, bytes, head, layout.norm_at, t)));
      } else if (layout.recipe.codec == Codec::kCodebook) {
        codes += CodeSize(layout, bytes, head, t, c);
        largest = std::max(
            largest, weights[t] * reference::DecodeF16(reference::GetU16(layout, bytes, head, layout.norm_at, t)));
      } else {
        const int64_t group = int64_t{c / layout.recipe.group_size} * kPageTokens + t;
        codes += code;
        largest = std::max(
            largest, weights[t] * reference::DecodeF16(reference::GetU16(layout, bytes, head, layout.scale_at, group)));
      }
    }
    error[c] = codes * largest / kOperandSteps;
  }
  return error;
}

struct Bound {
  std::vector<double> out;
  double lse = 0;
};

Bound BoundOf(const AttendArgs& args, const reference::HeadTokens& tokens, const reference::Attention& row, int token,
              int qo_head) {
  const PageLayout& k = args.format->k;
  const PageLayout& v = args.format->v;
  const int kv_head = qo_head / (args.num_qo_heads / k.shape.num_kv_heads);
  const float* from = args.q.data + token * args.q.token_stride + qo_head * args.q.head_stride;
  std::vector<double> q(from, from + k.shape.head_dim);
  if (k.recipe.rotate) reference::RotateHead(q.data(), k.shape.head_dim);

  std::vector<double> logit_error(row.logits.size());
  std::vector<double> operands(static_cast<size_t>(v.shape.head_dim));
  std::vector<double> plain(static_cast<size_t>(v.shape.head_dim));  // sum p |v| over values in 16 bits
  size_t first = 0;
  for (const AttendPage& page : args.pages) {
    for (int t = 0; t < page.num_tokens; ++t) {
      if (row.logits[first + t] == kHidden) continue;
      double error = Gamma(k.shape.head_dim + 20) * (row.logit_magnitude[first + t] + std::abs(row.logits[first + t]));
      if (IsPacked(page.k, t)) error += std::abs(args.softmax_scale) * KeyOperandError(k, page.k, kv_head, t, q);
      error += args.logit_softcap * 2 * kExponentialError;
      logit_error[first + t] = error;
      for (int c = 0; c < v.shape.head_dim && !IsPacked(page.v, t); ++c) {
        plain[c] += row.weights[first + t] * tokens.values[first + t][c].magnitude;
      }
    }
    if (page.v.sealed) {
      std::vector<double> error = ValueOperandError(v, page, kv_head, &row.weights[first]);
      double sum = 0;
      for (const double e : error) sum += e / std::sqrt(static_cast<double>(v.shape.head_dim));
      for (size_t c = 0; c < error.size(); ++c) operands[c] += v.recipe.rotate ? sum : error[c];
    }
    first += static_cast<size_t>(page.num_tokens);
  }
  // Weights p e^d / sum p e^d: the denominator is off by e^mean, the sink's logit in it by rounding.
  double mean = args.sink_logits ? Gamma(3) * std::abs(args.sink_logits[qo_head]) : 0.0;
  for (size_t i = 0; i < row.weights.size(); ++i) mean += row.weights[i] * std::expm1(logit_error[i]);
  const double sums = 3 * kExponentialError + Gamma(static_cast<double>(row.weights.size()) + 30);
  std::vector<double> weighted(static_cast<size_t>(v.shape.head_dim));
  for (size_t i = 0; i < row.weights.size(); ++i) {
    const double relative = row.weights[i] * (std::expm1(logit_error[i] + mean) + sums);
    for (int c = 0; c < v.shape.head_dim; ++c) weighted[c] += relative * tokens.values[i][c].magnitude;
  }
  // Values in 16 bits may be added in the basis of the packed ones: two rotations, each off by Gamma(log2 + 4) of the
  // 2-norm.
  double rotation = 0;
  for (const double x : plain) rotation += x * x;
  rotation = v.recipe.rotate ? Gamma(2 * (std::log2(v.shape.head_dim) + 4)) * std::sqrt(rotation) : 0.0;
  Bound bound;
  for (int c = 0; c < v.shape.head_dim; ++c) {
    bound.out.push_back(weighted[c] + sums * row.magnitude[c] + operands[c] + rotation + 1e-25);
  }
  bound.lse = mean + sums + Gamma(4) * std::abs(row.lse);
  return bound;
}

struct AttendCase {
  std::string recipe;
  HeadShape shape;
};
void PrintTo(const AttendCase& c, std::ostream* out) { *out << c.recipe << " " << ShapeName(c.shape); }

std::vector<AttendCase> AttendCases() {
  std::vector<AttendCase> cases;
  for (const Method& method : Methods()) {
    for (const HeadShape shape : {HeadShape{1, 32}, {2, 64}, {3, 128}, {8, 64}, {1, 256}})
      cases.push_back({method.name, shape});
  }
  cases.push_back({"f16", {2, 96}});  // 16-bit layers may have any multiple of 32
  for (const std::string& text : SealedRecipes()) {
    const Recipe recipe = ParseRecipe(text);
    if (text.find(':') != std::string::npos) cases.push_back({text, {2, std::max(64, recipe.v.group_size)}});
  }
  return cases;
}

class AttendTest : public testing::TestWithParam<AttendCase> {
 protected:
  static void Check(const Sequence& sequence, const Scene& scene, double& worst) {
    const AttendArgs& given = sequence.args();
    const int dim = sequence.format().v.shape.head_dim;
    std::vector<reference::Attention> want;
    std::vector<Bound> bounds;
    for (int h = 0; h < given.num_qo_heads; ++h) {
      const reference::HeadTokens tokens = reference::ReadTokens(given, h / scene.gqa_ratio);
      for (int t = 0; t < given.qo_len; ++t) {
        want.push_back(reference::AttendRow(given, tokens, t, h));
        bounds.push_back(BoundOf(given, tokens, want.back(), t, h));
      }
    }
    const std::unique_ptr<Executor> pool = MakeThreadPool(scene.threads);
    for (const int64_t target : Targets()) {
      SCOPED_TRACE(TargetName(target));
      const BackendOnTarget backend(target);
      AttendArgs args = given;
      const int64_t head_stride = dim + 5;
      const int64_t token_stride = head_stride * args.num_qo_heads + 1;
      Guarded<float> out(token_stride * args.qo_len, 0xff);
      Guarded<float> lse(int64_t{args.qo_len} * args.num_qo_heads, 0xff);
      args.out = {out.data(), token_stride, head_stride};
      args.lse = lse.data();
      backend->Attend(args, *pool);
      ASSERT_TRUE(out.intact() && lse.intact()) << "wrote beside the outputs";
      for (size_t i = 0; i < want.size(); ++i) {
        const int h = static_cast<int>(i) / args.qo_len;
        const int t = static_cast<int>(i) % args.qo_len;
        const float* got = out.data() + t * token_stride + h * head_stride;
        for (int c = 0; c < dim; ++c) {
          const double error = std::abs(got[c] - want[i].out[c]);
          ASSERT_LE(error, bounds[i].out[c]) << "token " << t << " head " << h << " channel " << c;
          worst = std::max(worst, error / bounds[i].out[c]);
        }
        for (int64_t c = dim; c < head_stride; ++c) ASSERT_TRUE(std::isnan(got[c])) << "wrote between heads";
        const float got_lse = lse[int64_t{t} * args.num_qo_heads + h];
        if (want[i].lse == kHidden)
          ASSERT_EQ(got_lse, kHidden);
        else
          ASSERT_NEAR(got_lse, want[i].lse, bounds[i].lse) << "token " << t << " head " << h;
      }
    }
  }
};

TEST_P(AttendTest, MatchesFloat64) {
  const Recipe recipe = ParseRecipe(GetParam().recipe);
  double worst = 0;
  for (const Scene& scene : kScenes) {
    if (int64_t{scene.kv_len} * scene.qo_len * scene.gqa_ratio * GetParam().shape.num_kv_heads *
            GetParam().shape.head_dim >
        20'000'000)
      continue;
    SCOPED_TRACE(scene.name);
    const Sequence sequence(recipe, GetParam().shape, scene, static_cast<uint32_t>(scene.kv_len));
    Check(sequence, scene, worst);
  }
  RecordProperty("largest_error_over_bound", std::to_string(worst));
}

INSTANTIATE_TEST_SUITE_P(All, AttendTest, testing::ValuesIn(AttendCases()), [](const auto& info) {
  return TestName(info.param.recipe + "_" + ShapeName(info.param.shape));
});

// Attending to two halves and merging equals attending to the whole, up to the bounds of both.
TEST_P(AttendTest, HalvesMergeToTheWhole) {
  const Recipe recipe = ParseRecipe(GetParam().recipe);
  const Scene scene = {.name = "Halves", .kv_len = 500, .qo_len = 2, .gqa_ratio = 2, .open_pages = 1, .sinks = 4};
  const Sequence sequence(recipe, GetParam().shape, scene, 77);
  const int dim = GetParam().shape.head_dim;
  for (const int64_t target : Targets()) {
    const BackendOnTarget backend(target);
    const auto attend = [&](std::span<const AttendPage> pages, std::vector<float>& out, std::vector<float>& lse) {
      AttendArgs args = sequence.args();
      args.pages = pages;
      out.assign(static_cast<size_t>(args.qo_len) * args.num_qo_heads * dim, std::numeric_limits<float>::quiet_NaN());
      lse.assign(static_cast<size_t>(args.qo_len) * args.num_qo_heads, std::numeric_limits<float>::quiet_NaN());
      args.out = {out.data(), int64_t{args.num_qo_heads} * dim, dim};
      args.lse = lse.data();
      backend->Attend(args, SerialExecutor());
    };
    std::vector<float> first, rest, first_lse, rest_lse;
    attend(sequence.args().pages.first(2), first, first_lse);
    attend(sequence.args().pages.subspan(2), rest, rest_lse);
    for (int h = 0; h < sequence.args().num_qo_heads; ++h) {
      const reference::HeadTokens tokens = reference::ReadTokens(sequence.args(), h / scene.gqa_ratio);
      for (int t = 0; t < scene.qo_len; ++t) {
        const int64_t row = int64_t{t} * sequence.args().num_qo_heads + h;
        MergePartials(&first[row * dim], first_lse[row], &rest[row * dim], rest_lse[row], dim);
        const reference::Attention want = reference::AttendRow(sequence.args(), tokens, t, h);
        const Bound bound = BoundOf(sequence.args(), tokens, want, t, h);
        for (int c = 0; c < dim; ++c)
          ASSERT_NEAR(first[row * dim + c], want.out[c], 2 * bound.out[c]) << TargetName(target);
        ASSERT_NEAR(first_lse[row], want.lse, 2 * bound.lse);
      }
    }
  }
}

}  // namespace
}  // namespace kvrazor::conformance
