#include "tests/conformance/cases.h"

#include <algorithm>
#include <bit>
#include <cctype>
#include <cmath>
#include <utility>

#define HWY_WANT_AVX3_DL  // as the kernels do, so that it is listed
#include "hwy/highway.h"
#include "reference/half.h"
#include "reference/rotate.h"

namespace kvrazor::conformance {

BackendOnTarget::BackendOnTarget(int64_t target) {
  // A machine whose best target this is: files that were not compiled for it take the next one (higher bits are older).
  hwy::SetSupportedTargetsForTest(hwy::SupportedTargets() & ~(target - 1));
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

BackendOnTarget::~BackendOnTarget() {
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

std::vector<int64_t> Targets() { return hwy::SupportedAndGeneratedTargets(); }
std::string TargetName(int64_t target) { return hwy::TargetName(target); }

std::vector<std::string> SealedRecipes() {
  std::vector<std::string> texts;
  std::vector<std::pair<SideRecipe, SideRecipe>>
      seen;  // methods that differ only in what stays in 16 bits are one here
  for (const Method& method : Methods()) {
    const std::pair sides(method.recipe.k, method.recipe.v);
    if (method.recipe.is_f16() || std::find(seen.begin(), seen.end(), sides) != seen.end()) continue;
    seen.push_back(sides);
    texts.push_back(method.name);
  }
  for (const char* text :
       {"kivi:k4,v4", "kivi:k3,v3", "kivi:k2g64,v2g64", "kivi:k2g128,v4g128", "oscar:k4,v4", "oscar:k3g64,v3g64",
        "oscar:k2g128,v4g128", "razor-2:k4,v4", "razor-2:k3,v3", "razor-2r:k4,v2g64", "razor-3v:v4g32",
        "quarot:k4g64,v3g32", "quarot-sym:k4,v4", "turboquant-3:k4,v4"})
    texts.push_back(text);
  return texts;
}

std::vector<HeadShape> Shapes(const std::string& recipe_text, const SideRecipe& side) {
  const bool registered = recipe_text.find(':') == std::string::npos;
  std::vector<HeadShape> shapes;
  for (const int head_dim : {32, 64, 128, 256}) {
    if (side.codec == Codec::kAffine && side.axis == Axis::kPerToken && side.group_size > head_dim) continue;
    for (const int num_kv_heads : {1, 2, 3, 8}) {
      if (registered || num_kv_heads == 2 || num_kv_heads == 3) shapes.push_back({num_kv_heads, head_dim});
    }
  }
  return shapes;
}

std::string ShapeName(HeadShape shape) {
  return std::to_string(shape.num_kv_heads) + "x" + std::to_string(shape.head_dim);
}

std::string TestName(std::string text) {
  for (char& c : text) {
    if (!std::isalnum(static_cast<unsigned char>(c))) c = '_';
  }
  return text;
}

std::string KindName(PageKind kind) {
  switch (kind) {
    case PageKind::kOutliers: return "outliers";
    case PageKind::kExact: return "exact";
    case PageKind::kDegenerate: return "degenerate";
    case PageKind::kAllExact: return "all exact";
  }
  return "";
}

f16_bits NormalF16(std::mt19937& random, double deviation) {
  std::normal_distribution<double> normal(0, deviation);
  return reference::EncodeFiniteF16(normal(random));
}

namespace {

class PageMaker {
 public:
  PageMaker(HeadShape shape, uint32_t seed) : shape_(shape), random_(seed) {
    page_.rows.resize(static_cast<size_t>(kPageTokens) * shape.num_kv_heads * shape.head_dim);
  }

  TestPage Make(PageKind kind) {
    FillWithOutliers();
    switch (kind) {
      case PageKind::kOutliers:
        if (std::has_single_bit(static_cast<unsigned>(shape_.head_dim)))
          FillMoment(/*num_queries=*/shape_.head_dim / 2);
        break;
      case PageKind::kExact: MakeExact(); break;
      case PageKind::kDegenerate:
        MakeDegenerate();
        FillMoment(/*num_queries=*/1);
        break;
      case PageKind::kAllExact:
        for (int t = 0; t < kPageTokens; ++t) page_.exact.Set(t);
        break;
    }
    for (int t = 0; t < kPageTokens; ++t) {
      if (!page_.exact.Test(t)) continue;
      page_.exact_rows.insert(page_.exact_rows.end(), &At(t, 0, 0),
                              &At(t, 0, 0) + shape_.num_kv_heads * shape_.head_dim);
    }
    return std::move(page_);
  }

 private:
  f16_bits& At(int t, int h, int c) {
    return page_.rows[(static_cast<size_t>(t) * shape_.num_kv_heads + h) * shape_.head_dim + c];
  }
  double Uniform(double from, double to) { return std::uniform_real_distribution<double>(from, to)(random_); }
  double Normal() { return std::normal_distribution<double>()(random_); }

  void FillWithOutliers() {
    std::vector<double> token_gain(kPageTokens);
    for (double& gain : token_gain) gain = Uniform(0, 1) < 0.05 ? Uniform(0.05, 0.3) : Uniform(0, 1) < 0.03 ? 4 : 1;
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      for (int c = 0; c < shape_.head_dim; ++c) {
        const double mean = Uniform(0, 1) < 0.1 ? 5 * Normal() : 0.3 * Normal();
        const double deviation = Uniform(0, 1) < 0.1 ? 6 : Uniform(0.5, 1.5);
        for (int t = 0; t < kPageTokens; ++t) {
          At(t, h, c) = reference::EncodeFiniteF16(token_gain[t] * (mean + deviation * Normal()));
        }
      }
    }
  }

  void MakeExact() {
    for (const int t : {0, 1, 2, 3, 31, 77, 127}) {
      page_.exact.Set(t);
      for (int c = 0; c < shape_.head_dim; ++c)
        At(t, shape_.num_kv_heads - 1, c) = 0x7bff;  // would swamp any statistic
    }
    for (int t = 64; t < 80; ++t) page_.exact.Set(t);  // a whole tile
    At(5, 0, 0) = 0x7c00;
    At(6, 0, 1) = 0xfc00;
    At(7, shape_.num_kv_heads - 1, shape_.head_dim - 1) = 0x7e00;
  }

  void MakeDegenerate() {
    for (int t = 0; t < kPageTokens; ++t) {
      for (int h = 0; h < shape_.num_kv_heads; ++h) {
        for (int c = 0; c < shape_.head_dim; ++c) {
          if (t < 32) At(t, h, c) = At(0, h, c);                  // a run of one token
          if (t >= 32 && t < 40) At(t, h, c) = 0;                 // nothing
          if (t >= 40 && t < 48) At(t, h, c) = (t + c) % 2;       // the smallest f16
          if (t == 48 && h == 0 && c == 3) At(t, h, c) = 0x7bff;  // the largest
          if (c == 5) At(t, h, c) = 0x3c00;                       // a constant channel
        }
      }
    }
    if (shape_.num_kv_heads > 1) {  // a head that never varies
      for (int t = 0; t < kPageTokens; ++t) {
        for (int c = 0; c < shape_.head_dim; ++c) At(t, 1, c) = At(0, 1, c);
      }
    }
  }

  void FillMoment(int num_queries) {
    page_.moment = SecondMoment(shape_);
    page_.has_moment = true;
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      std::vector<float> moment(static_cast<size_t>(shape_.head_dim * shape_.head_dim));
      for (int i = 0; i < num_queries; ++i) {
        std::vector<double> q(static_cast<size_t>(shape_.head_dim));
        for (double& x : q) x = Normal();
        reference::RotateHead(q.data(), shape_.head_dim);
        for (int a = 0; a < shape_.head_dim; ++a) {
          for (int b = 0; b < shape_.head_dim; ++b) moment[a * shape_.head_dim + b] += static_cast<float>(q[a] * q[b]);
        }
      }
      page_.moment.Add(h, moment.data());
    }
    page_.moment.set_count(num_queries);
  }

  HeadShape shape_;
  std::mt19937 random_;
  TestPage page_;
};

}  // namespace

TestPage MakeTestPage(HeadShape shape, PageKind kind, uint32_t seed) { return PageMaker(shape, seed).Make(kind); }

}  // namespace kvrazor::conformance
