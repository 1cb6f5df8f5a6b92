// Second moment and factor on the GPU against float64.
#include "src/backends/cuda/metric.h"

#include <gmock/gmock.h>

#include <bit>
#include <cmath>

#include "kvrazor/error.h"
#include "reference/seal_razor_key.h"
#include "reference/second_moment.h"
#include "src/backends/cuda/metric_layout.h"
#include "src/core/half.h"
#include "tests/backends/cuda/store_case.h"

namespace kvrazor::cuda {
namespace {

struct Shape {
  int head_dim, num_kv_heads, gqa_ratio;
  bool plain = false;
};

class CudaMetricTest : public testing::TestWithParam<Shape> {
 protected:
  CudaMetricTest()
      : shape_{GetParam().num_kv_heads, GetParam().head_dim},
        num_qo_heads_(shape_.num_kv_heads * GetParam().gqa_ratio) {}

  MetricPlan Plan() const {
    const MetricPlan plan({shape_.head_dim, shape_.num_kv_heads, num_qo_heads_, GetParam().plain}, CurrentDevice());
    plan.Init();
    return plan;
  }
  int64_t size() const { return int64_t{shape_.num_kv_heads} * shape_.head_dim * shape_.head_dim; }

  HeadShape shape_;
  int num_qo_heads_;
  std::mt19937 random_{5};
};

TEST_P(CudaMetricTest, MomentIsTheReferences) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  const MetricPlan plan = Plan();
  const int64_t row = int64_t{num_qo_heads_} * shape_.head_dim, stride = row + 16;
  for (const int num_tokens : {0, 1, 15, 16, 63, 200}) {
    for (const int sample : {1, 3}) {
      SCOPED_TRACE(std::to_string(num_tokens) + " tokens, every " + std::to_string(sample));
      std::vector<f16_bits> q(static_cast<size_t>((num_tokens + 1) * stride), 0x7e00);
      std::vector<float> q_f32(q.size());
      for (int t = 0; t < num_tokens; ++t) {
        for (int64_t i = 0; i < row; ++i)
          q[t * stride + i] = conformance::NormalF16(random_, 1 + static_cast<double>(i % 7));
      }
      if (num_tokens > 7) {
        q[6 * stride + 3] = 0x7c00;                // an infinity
        q[3 * stride + shape_.head_dim] = 0x7e00;  // NaN, in another head where there are two
      }
      for (size_t i = 0; i < q.size(); ++i) q_f32[i] = F32FromF16(q[i]);
      std::vector<float> before(static_cast<size_t>(size()));
      for (int h = 0; h < shape_.num_kv_heads; ++h) {
        for (int i = 0; i < shape_.head_dim; ++i)
          before[(int64_t{h} * shape_.head_dim + i) * shape_.head_dim + i] = 2.5f;
      }
      DeviceBuffer<float> moment(before);
      const DeviceBuffer<f16_bits> d_q(q);
      constexpr float kKeep = 0.75f;
      plan.AddQueries({.q = d_q.data(), .token_stride = stride, .num_tokens = num_tokens, .sample = sample}, kKeep,
                      moment.data(), nullptr);
      CheckCuda(cudaDeviceSynchronize());
      const auto got = moment.Download();
      const auto want =
          reference::QueryMoment(shape_, {q_f32.data(), stride, shape_.head_dim}, num_tokens, num_qo_heads_, sample);
      // Products are exact; sums of up to num_tokens * gqa_ratio terms in the tensor core's order, which cuts instead of rounding, then two
      // rotations of log2(D) additions. Cutting loses at most 2 u an addition; magnitudes after a rotation are those of the terms before it.
      double largest = 0;
      for (const auto& x : want) largest = std::max(largest, x.magnitude);
      const double terms =
          static_cast<double>(num_tokens) * GetParam().gqa_ratio / sample + 2 * std::log2(shape_.head_dim) + 8;
      const double allowed = conformance::Gamma(2 * terms) * shape_.head_dim * largest;
      double worst = 0;
      for (int64_t i = 0; i < size(); ++i)
        worst = std::max(worst, std::abs(got[i] - kKeep * before[i] - want[i].value));
      EXPECT_LE(worst, allowed + 1e-6);
      EXPECT_LE(worst, 1e-4 * largest + 1e-6) << "far above what such sums lose";
      const int dim = shape_.head_dim;
      for (int h = 0; h < shape_.num_kv_heads; ++h) {
        for (int i = 0; i < dim; ++i) {
          for (int j = 0; j < i; ++j)
            ASSERT_EQ(got[(h * dim + i) * dim + j], got[(h * dim + j) * dim + i]) << "not symmetric";
        }
      }
    }
  }
}

/// Entry (i, c) of I + W as sealing reads it: from the fragments of tensor cores, and within a block of 16 channels once more in f32.
template <int kDim>
double PackedWeight(const std::byte* metric, int i, int c) {
  using Layout = MetricLayout<kDim>;
  const auto* fragments = reinterpret_cast<const uint32_t*>(metric + Layout::kFragments);
  const int kt = i / 16, q = i % 16 / 4, e = i % 4, block = c / 16, g = c % 8, word = 2 * (e / 2) + c % 16 / 8;
  const int64_t at = ((int64_t{kt} * Layout::kBlocks + block) * 64 + 4 * g + q) * 4 + word;
  const auto half = [&](int64_t from) { return F32FromF16(static_cast<f16_bits>(fragments[from] >> (16 * (e % 2)))); };
  return double{half(at)} + half(at + 32 * 4);
}

template <int kDim>
void CheckFactor(const reference::Feedback& want, const std::byte* metric, bool plain) {
  using Layout = MetricLayout<kDim>;
  const auto* within = reinterpret_cast<const float*>(metric + Layout::kWithin);
  const auto* weights = reinterpret_cast<const float*>(metric);
  const auto* pivots = plain ? weights + kDim * kDim : reinterpret_cast<const float*>(metric + Layout::kPivots);
  double worst = 0;
  for (int i = 0; i < kDim; ++i) {
    for (int c = plain ? i + 1 : 0; c < kDim; ++c) {
      const double expected = i < c ? want.weights(i, c) : 0.0;
      if (plain) {
        worst = std::max(worst, std::abs(weights[i * kDim + c] - expected));
        continue;
      }
      worst = std::max(worst, std::abs(PackedWeight<kDim>(metric, i, c) - (i == c ? 1.0 : expected)));  // I + W
      if (i / 16 == c / 16) {
        worst = std::max(worst, std::abs(within[(i / 16) * 256 + i % 16 * 16 + c % 16] - expected));
      }
    }
  }
  // As the judge of sealed bytes allows: D eliminations, each entry a sum of D products, of weights up to 25.
  EXPECT_LE(worst, conformance::Gamma(8 * kDim) * 25);
  // d_c up to a common factor: A is scaled to tr A = 1.2 D.
  for (int c = 0; c < kDim; ++c)
    EXPECT_NEAR(pivots[c] / pivots[0], want.pivots[c] / want.pivots[0], 1e-3 * want.pivots[c] / want.pivots[0]) << c;
}

void CheckFactorOf(int head_dim, const reference::Feedback& want, const std::byte* metric, bool plain) {
  if (head_dim == 64) return CheckFactor<64>(want, metric, plain);
  head_dim == 128 ? CheckFactor<128>(want, metric, plain) : CheckFactor<256>(want, metric, plain);
}

TEST_P(CudaMetricTest, FactorIsTheReferences) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  const MetricPlan plan = Plan();
  for (const auto kind :
       {conformance::PageKind::kOutliers, conformance::PageKind::kDegenerate}) {  // queries of half rank, and one query
    const auto page = conformance::MakeTestPage(shape_, kind, 4);
    DeviceBuffer<float> moment(SquareMoment(page.moment));
    DeviceBuffer<std::byte> metric(static_cast<size_t>(plan.metric_bytes()));
    plan.Factor(moment.data(), metric.data(), nullptr);
    CheckCuda(cudaDeviceSynchronize());
    const auto bytes = metric.Download();
    for (int h = 0; h < shape_.num_kv_heads; ++h) {
      const auto want = reference::FactorMetric(reference::SealMetric(&page.moment, h, shape_.head_dim));
      const std::byte* head = bytes.data() + h * (plan.metric_bytes() / shape_.num_kv_heads);
      CheckFactorOf(shape_.head_dim, want, head, GetParam().plain);
    }
  }
  // Nothing seen, or nonsense: the identity.
  for (const float fill : {0.f, std::numeric_limits<float>::quiet_NaN(), -1.f}) {
    DeviceBuffer<float> moment(std::vector<float>(static_cast<size_t>(size()), fill));
    DeviceBuffer<std::byte> metric(static_cast<size_t>(plan.metric_bytes()));
    plan.Factor(moment.data(), metric.data(), nullptr);
    CheckCuda(cudaDeviceSynchronize());
    const auto bytes = metric.Download();
    reference::Matrix identity(shape_.head_dim);
    for (int i = 0; i < shape_.head_dim; ++i) identity(i, i) = 1;
    const auto want = reference::FactorMetric(identity);
    CheckFactorOf(shape_.head_dim, want, bytes.data(), GetParam().plain);
  }
}

/// Those that this build has kernels for (KVRAZOR_CUDA_HEAD_DIMS).
std::vector<Shape> BuiltShapes(std::vector<Shape> shapes) {
  std::erase_if(shapes, [](const Shape& s) {
    const auto plain = PlainStoreInstances();
    return s.plain && std::none_of(plain.begin(), plain.end(), [&](const auto& i) { return i.head_dim == s.head_dim; });
  });
  return shapes;
}

INSTANTIATE_TEST_SUITE_P(
    Shapes, CudaMetricTest,
    testing::ValuesIn(BuiltShapes(
        {{64, 2, 1}, {128, 1, 4}, {128, 3, 7}, {64, 1, 16}, {256, 2, 3, true}, {64, 3, 1, true}, {128, 2, 2, true}})),
    [](const auto& info) {
      return std::to_string(info.param.num_kv_heads) + "x" + std::to_string(info.param.head_dim) + "_gqa" +
             std::to_string(info.param.gqa_ratio) + (info.param.plain ? "_plain" : "");
    });

TEST(CudaMetricPlanTest, RefusesWhatCannotBe) {
  const Device device{.name = "a device", .compute_major = 9, .num_sms = 132, .shared_bytes = 232448};
  const auto message = [&](MetricSpec spec) -> std::string {
    try {
      const MetricPlan plan(spec, device);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  EXPECT_THAT(message({256, 8, 32}), testing::HasSubstr("head_dim=256; possible are 64 and 128 with packed pages"));
  EXPECT_THAT(message({32, 8, 32, true}), testing::HasSubstr("head_dim=32; this build has"));
  EXPECT_THAT(message({128, 0, 32}), testing::HasSubstr("num_kv_heads=0"));
  EXPECT_THAT(message({128, 8, 12}), testing::HasSubstr("num_qo_heads=12"));
}

}  // namespace
}  // namespace kvrazor::cuda
