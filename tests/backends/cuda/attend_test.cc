// Decode attention against float64 on the same codes. What is left is rounding: logits from 16-bit fixed point (razor) or f16 operands
// in two parts (affine), or keys and values rounded to f16 (plain pages), weights likewise, f16 output: relative L2 error 2e-3 over a case, 5e-3 for a single head.
#include "src/backends/cuda/attend.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "kvrazor/error.h"
#include "src/backends/cuda/plain_instance.h"
#include "src/core/half.h"
#include "tests/backends/cuda/attend_case.h"

namespace kvrazor::cuda {
namespace {

constexpr double kLargestError = 2e-3;
constexpr double kLargestHeadError = 5e-3;
constexpr double kLargestLseError = 2e-3;

std::string NameOf(const std::string& text) {
  std::string name = text;
  std::replace_if(
      name.begin(), name.end(), [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
  return name;
}

void ExpectClose(const std::vector<f16_bits>& out, const std::vector<float>& lse, const Expected& want,
                 const CaseShape& shape, const AttendCase& attend_case) {
  const int head_dim = shape.head_dim;
  double error = 0, size = 0, worst = 0;
  for (size_t head = 0; head < lse.size(); ++head) {
    double head_error = 0, head_size = 0;
    for (int c = 0; c < head_dim; ++c) {
      const size_t i = head * head_dim + c;
      const double got = attend_case.Value(out[i]);
      ASSERT_TRUE(std::isfinite(got)) << "head " << head << " channel " << c;
      head_error += (got - want.out[i]) * (got - want.out[i]);
      head_size += want.out[i] * want.out[i];
    }
    error += head_error;
    size += head_size;
    if (head_size > 0) worst = std::max(worst, std::sqrt(head_error / head_size));
    if (std::isinf(want.lse[head])) {
      EXPECT_EQ(lse[head], want.lse[head]);
      EXPECT_EQ(head_error, 0);
    } else {
      EXPECT_NEAR(lse[head], want.lse[head], kLargestLseError * (1 + std::abs(want.lse[head]))) << "head " << head;
    }
  }
  const double relative = size > 0 ? std::sqrt(error / size) : 0;
  constexpr double kBf16Rounding = 1. / 256;
  EXPECT_LE(relative, kLargestError + (shape.bf16 ? kBf16Rounding : 0));
  EXPECT_LE(worst, kLargestHeadError + (shape.bf16 ? kBf16Rounding : 0));
  testing::Test::RecordProperty("relative_l2", std::to_string(relative));
  testing::Test::RecordProperty("worst_head", std::to_string(worst));
}

/// Runs a case three times into poisoned outputs: right, and the same bits every time.
void RunCase(const CaseShape& shape) {
  const AttendCase c(shape);
  const AttendPlan plan(c.spec(), CurrentDevice());
  AttendCase::OnDevice device(c, plan);
  AttendArrays arrays = device.arrays();
  arrays.batch_size = c.batch_size();
  std::vector<f16_bits> first;
  for (int run = 0; run < 3; ++run) {
    device.Poison();
    plan.Run(arrays, nullptr);
    CheckCuda(cudaDeviceSynchronize());
    const auto out = device.out.Download();
    if (run == 0) {
      first = out;
      ExpectClose(out, device.lse.Download(), c.Reference(), shape, c);
    }
    EXPECT_EQ(out, first) << "run " << run << " differs";
  }
}

struct Variant {
  std::string recipe;
  int head_dim;
  int compute_major = kPackedComputeMajor;
};

std::string TextOf(const Variant& v) {
  return NameOf(v.recipe) + "_" + std::to_string(v.head_dim) + (v.compute_major < kPackedComputeMajor ? "_plain" : "");
}
void PrintTo(const Variant& v, std::ostream* out) { *out << TextOf(v); }
std::string VariantName(const testing::TestParamInfo<Variant>& info) { return TextOf(info.param); }

/// Variants without those that this build has no kernels for (KVRAZOR_CUDA_HEAD_DIMS, KVRAZOR_CUDA_FORMS).
std::vector<Variant> Built(std::vector<Variant> variants) {
  std::erase_if(variants, [](const Variant& v) {
    const Recipe recipe = ParseRecipe(v.recipe);
    const HeadShape shape{2, v.head_dim};
    const PackedFormat format = MakePackedFormat(
        {MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)}, v.compute_major);
    const auto packed = AttendInstances();
    const auto plain = PlainAttendInstances();
    if (format.kind == PageKind::kPlain)
      return std::none_of(plain.begin(), plain.end(), [&](const auto& i) { return i.head_dim == v.head_dim; });
    return std::none_of(packed.begin(), packed.end(),
                        [&](const auto& i) { return i.form == format.form() && i.rotate == format.rotate; });
  });
  return variants;
}

GTEST_ALLOW_UNINSTANTIATED_PARAMETERIZED_TEST(AttendTest);
class AttendTest : public testing::TestWithParam<Variant> {
 protected:
  CaseShape Shape(std::vector<int> kv_len) const {
    CaseShape s;
    s.recipe = GetParam().recipe;
    s.head_dim = GetParam().head_dim;
    s.compute_major = GetParam().compute_major;
    s.kv_len = std::move(kv_len);
    return s;
  }
};

TEST_P(AttendTest, LengthsAroundEveryEdge) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  // sinks (4), row units (16), pages (128), the window (128): one less, the edge, one more
  RunCase(Shape({0, 1, 3, 4, 5, 15, 16, 17, 31, 33, 127, 128, 129, 143, 145, 255, 256, 257, 383, 385, 1000, 2048, 0}));
}

TEST_P(AttendTest, EveryGqaRatio) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (int gqa = 1; gqa <= 8; ++gqa) {
    SCOPED_TRACE(gqa);
    CaseShape s = Shape({700, 130, 2000});
    s.gqa_ratio = gqa;
    s.seed = static_cast<uint32_t>(gqa);
    RunCase(s);
  }
}

TEST_P(AttendTest, OneLongSequenceOverAllMultiprocessors) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  CaseShape s = Shape({40000});
  s.num_kv_heads = 1;
  s.gqa_ratio = 2;
  RunCase(s);
  s.kv_len = {30000, 1, 20011};
  s.gqa_ratio = 8;
  RunCase(s);
}

TEST_P(AttendTest, AMillionTokens) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  // In the middle of a page, behind its end, and where kv_len needs its 21st bit.
  CaseShape s = Shape({1000000, 7812 * kPageTokens + 1, (1 << 20) + 1});
  s.num_kv_heads = 1;
  s.gqa_ratio = 1;
  RunCase(s);
}

TEST_P(AttendTest, ManySequences) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  CaseShape s = Shape({});
  for (int b = 0; b < 300; ++b) s.kv_len.push_back(b % 7 == 0 ? 0 : 1 + (b * 7919) % 600);
  s.gqa_ratio = 2;
  RunCase(s);
}

TEST_P(AttendTest, RowPagesAnywhereAndAnyHint) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const bool wrong_hint : {false, true}) {
    for (const double share : {0.3, 1.0}) {
      CaseShape s = Shape({1, 127, 640, 1300, 2049, 5000});
      s.row_page_share = share;
      s.wrong_hint = wrong_hint;
      s.seed = 11;
      RunCase(s);
    }
  }
}

TEST_P(AttendTest, SharpAndFlatSoftmax) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const float key_size : {0.01f, 8.f}) {
    CaseShape s = Shape({1500, 300, 4100});
    s.key_size = key_size;
    RunCase(s);
  }
}

TEST_P(AttendTest, SeveralNewTokensAndWideGroups) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const auto& [qo_len, gqa] :
       std::vector<std::pair<int, int>>{{1, 9}, {1, 16}, {2, 1}, {2, 4}, {3, 5}, {4, 2}, {8, 1}, {8, 4}, {8, 16}}) {
    SCOPED_TRACE(testing::Message() << qo_len << " new tokens, " << gqa << " heads");
    CaseShape s = Shape({700, 0, 1, 5, 8, 127, 128, 130, 135, 257, 1500});  // shorter than qo_len too
    s.qo_len = qo_len;
    s.gqa_ratio = gqa;
    s.num_kv_heads = 1;
    RunCase(s);
  }
}

TEST_P(AttendTest, SlidingWindow) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const int window : {1, 5, 100, 128, 129, 512, 5000}) {
    for (const int qo_len : {1, 3}) {
      SCOPED_TRACE(testing::Message() << "window " << window << ", " << qo_len << " new tokens");
      CaseShape s = Shape({0, 1, 4, 127, 128, 130, 257, 640, 1500, 3000});
      s.sliding_window = window;
      s.qo_len = qo_len;
      s.gqa_ratio = 2;
      s.num_kv_heads = 1;
      RunCase(s);
    }
  }
}

TEST_P(AttendTest, SoftcapMaskAndLearnedSinks) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (int bits = 1; bits < 16; ++bits) {
    CaseShape s = Shape({0, 1, 130, 255, 700, 2000});
    s.softcap = bits & 1 ? 20.f : 0.f;
    s.masked = (bits & 2) != 0;
    s.learned_sinks = (bits & 4) != 0;
    s.bf16 = (bits & 8) != 0;
    s.qo_len = 1 + bits % 3;
    s.gqa_ratio = 1 + bits % 7;
    s.row_page_share = 0.2;
    s.num_kv_heads = 1;
    s.seed = static_cast<uint32_t>(bits);
    SCOPED_TRACE(testing::Message() << "variant " << bits);
    RunCase(s);
  }
}

// The ring wraps round several times, a stage passing from team to team.
TEST_P(AttendTest, RingOfAnyLength) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  if (GetParam().head_dim != 64) GTEST_SKIP() << "pages of head_dim 128 leave room for few lengths";
  if (AttendCase(Shape({1})).spec().format.kind == PageKind::kPlain) GTEST_SKIP() << "plain pages pass through no ring";
  for (const int stages : {8, 9, 13}) {
    SCOPED_TRACE(testing::Message() << stages << " stages");
    CaseShape s = Shape({});
    for (int b = 0; b < 100; ++b) s.kv_len.push_back((b * 7919) % 1500);
    s.ring_stages = stages;
    RunCase(s);
  }
}

TEST_P(AttendTest, SmallerBatchesInTheSameWorkspace) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  const CaseShape s = Shape({3000, 100, 1999, 513});
  const AttendCase c(s);
  const AttendPlan plan(c.spec(), CurrentDevice());
  AttendCase::OnDevice device(c, plan);
  AttendArrays arrays = device.arrays();
  const Expected all = c.Reference();
  for (const int batch_size : {4, 1, 3, 2, 4}) {
    SCOPED_TRACE(batch_size);
    device.Poison();
    arrays.batch_size = batch_size;
    plan.Run(arrays, nullptr);
    CheckCuda(cudaDeviceSynchronize());
    auto out = device.out.Download();
    auto lse = device.lse.Download();
    for (size_t i = out.size() / 4 * static_cast<size_t>(batch_size); i < out.size(); ++i)
      ASSERT_EQ(out[i], 0xffff) << "wrote behind the batch";
    const auto part = [&](auto& of) { of.resize(of.size() / 4 * static_cast<size_t>(batch_size)); };
    Expected want = all;
    part(out);
    part(lse);
    part(want.out);
    part(want.lse);
    ExpectClose(out, lse, want, s, c);
  }
}

TEST_P(AttendTest, GraphReplayFollowsLengthsAndTables) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  const CaseShape s = Shape({3000, 100, 1999});
  AttendCase c(s);
  const AttendPlan plan(c.spec(), CurrentDevice());
  AttendCase::OnDevice device(c, plan);
  AttendArrays arrays = device.arrays();
  arrays.batch_size = c.batch_size();
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CheckCuda(cudaStreamCreate(&stream));
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  plan.Run(arrays, stream);
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  // Whole pages, so that the page pools stay what they are.
  const std::vector<std::vector<int>> lengths = {{128, 512, 2944}, {0, 3072, 256}, {1024, 1024, 1024}};
  for (const std::vector<int>& kv_len : lengths) {
    c.Shuffle(kv_len, static_cast<uint32_t>(kv_len[0]));
    device.page_table.Upload(c.page_table());
    device.kv_len.Upload(std::vector<int32_t>(kv_len.begin(), kv_len.end()));
    device.row_start.Upload(c.row_start());
    device.Poison();
    CheckCuda(cudaDeviceSynchronize());
    CheckCuda(cudaGraphLaunch(executable, stream));
    CheckCuda(cudaStreamSynchronize(stream));
    const auto replayed = device.out.Download();
    ExpectClose(replayed, device.lse.Download(), c.Reference(), s, c);
    device.Poison();
    plan.Run(arrays, nullptr);
    CheckCuda(cudaDeviceSynchronize());
    EXPECT_EQ(device.out.Download(), replayed) << "plain launch and replay differ";
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

INSTANTIATE_TEST_SUITE_P(Formats, AttendTest,
                         testing::ValuesIn(Built({{"razor-2", 128},
                                                  {"razor-2:sinks=0", 128},
                                                  {"razor-2", 64},
                                                  {"razor-2r", 128},
                                                  {"razor-2:k3", 64},
                                                  {"razor-3", 64},
                                                  {"razor-3", 128},
                                                  {"razor-3v", 128},
                                                  {"oscar", 128},
                                                  {"oscar:sinks=16", 64},
                                                  {"kivi", 128},
                                                  {"oscar:k2g128,v2g64", 128},
                                                  {"oscar:k4g32,v4g32", 128},
                                                  {"oscar:k4g64", 64},
                                                  {"kivi:v4g32", 128}})),
                         VariantName);

// Plain pages: every codec and width of codes, every head_dim, and the recipes that have packed pages on newer cards.
INSTANTIATE_TEST_SUITE_P(PlainPages, AttendTest,
                         testing::ValuesIn(Built({{"quarot", 128},
                                                  {"quarot-sym:k4g32,v4g32", 64},
                                                  {"turboquant-2", 64},
                                                  {"turboquant-2.5", 128},
                                                  {"turboquant-3", 256},
                                                  {"turboquant-2:k4,v4", 128},
                                                  {"oscar:k3g64,v3g32", 128},
                                                  {"oscar-kernel", 128},
                                                  {"oscar:sinks=16", 256},
                                                  {"kivi", 256},
                                                  {"razor-2", 256},
                                                  {"razor-3v", 256},
                                                  {"quarot:k2g128,v2g128", 256},
                                                  {"razor-2", 128, kPlainComputeMajor},
                                                  {"razor-2:k4,v2g64", 64, kPlainComputeMajor},
                                                  {"oscar:k4g32,v4g32", 64, kPlainComputeMajor}})),
                         VariantName);

// ---- what a plan refuses; needs no device
Device Hopper() { return {.name = "a device", .compute_major = 9, .num_sms = 132, .shared_bytes = 232448}; }

std::string MessageOf(const AttendSpec& spec, const Device& device) {
  try {
    AttendPlan plan(spec, device);
    return "accepted: " + plan.Explain();
  } catch (const Error& e) {
    return e.what();
  }
}

AttendSpec GoodSpec() {
  const Recipe recipe = ParseRecipe("razor-2");
  const HeadShape shape{8, 128};
  AttendSpec s;
  s.format =
      MakePackedFormat({MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)});
  s.num_qo_heads = 32;
  s.max_batch_size = 64;
  s.max_pages = 1024;
  s.sink_tokens = 4;
  s.softmax_scale = 0.1f;
  return s;
}

TEST(AttendPlanTest, SaysWhatItPicked) {
  const std::string text = MessageOf(GoodSpec(), Hopper());
  EXPECT_THAT(text, testing::HasSubstr("accepted"));
  EXPECT_THAT(text, testing::HasSubstr("int8 tensor cores"));
  EXPECT_THAT(text, testing::HasSubstr("4 query heads a kv head"));
}

AttendSpec PlainSpec() {
  AttendSpec s = GoodSpec();
  s.format = MakePackedFormat(s.format.layer, kPlainComputeMajor);
  return s;
}

TEST(AttendPlanTest, SaysThatPlainPagesAreDecodedFirst) {
  Device old = Hopper();
  old.compute_major = 8;
  old.shared_bytes = 99 * 1024;  // of a card of compute capability 8.6 or 8.9
  EXPECT_THAT(MessageOf(PlainSpec(), Hopper()), testing::HasSubstr("accepted"));
  EXPECT_THAT(MessageOf(PlainSpec(), old), testing::HasSubstr("by composition: each warp decodes 16 tokens"));
  EXPECT_THAT(MessageOf(PlainSpec(), old), testing::HasSubstr("plain pages of 2-bit razor keys"));
  old.compute_major = 7;
  EXPECT_THAT(MessageOf(PlainSpec(), old), testing::HasSubstr("they need 8.0"));
  AttendSpec rings = PlainSpec();
  rings.ring_stages = 8;
  EXPECT_THAT(MessageOf(rings, Hopper()), testing::HasSubstr("ring_stages=8"));
}

TEST(AttendPlanTest, RefusesWhatItCannotRun) {
  const auto with = [](auto change) {
    AttendSpec s = GoodSpec();
    change(s);
    return MessageOf(s, Hopper());
  };
  EXPECT_THAT(with([](AttendSpec& s) { s.num_qo_heads = 12; }), testing::HasSubstr("num_qo_heads=12"));
  EXPECT_THAT(with([](AttendSpec& s) { s.num_qo_heads = 136; }), testing::HasSubstr("1 to 16 query heads"));
  EXPECT_THAT(with([](AttendSpec& s) { s.max_batch_size = 0; }), testing::HasSubstr("max_batch_size=0"));
  EXPECT_THAT(with([](AttendSpec& s) { s.max_batch_size = 5000; }), testing::HasSubstr("Split the batch"));
  EXPECT_THAT(with([](AttendSpec& s) { s.max_pages = 0; }), testing::HasSubstr("max_pages=0"));
  EXPECT_THAT(with([](AttendSpec& s) { s.max_pages = 10000000; }), testing::HasSubstr("too large"));
  EXPECT_THAT(with([](AttendSpec& s) { s.qo_len = 9; }), testing::HasSubstr("qo_len=9"));
  EXPECT_THAT(with([](AttendSpec& s) { s.sliding_window = -1; }), testing::HasSubstr("sliding_window=-1"));
  EXPECT_THAT(with([](AttendSpec& s) { s.softcap = -1; }), testing::HasSubstr("softcap"));
  EXPECT_THAT(with([](AttendSpec& s) { s.sink_tokens = 17; }), testing::HasSubstr("sink_tokens=17"));
  EXPECT_THAT(with([](AttendSpec& s) { s.softmax_scale = 0; }), testing::HasSubstr("softmax_scale"));
  EXPECT_THAT(with([](AttendSpec& s) { s.ring_stages = 7; }), testing::HasSubstr("8 to 32"));
  EXPECT_THAT(with([](AttendSpec& s) { s.ring_stages = 33; }), testing::HasSubstr("ring_stages=33"));
  EXPECT_THAT(with([](AttendSpec& s) { s.ring_stages = 32; }), testing::HasSubstr("shared memory"));
  EXPECT_THAT(with([](AttendSpec& s) { s.format.rotate = false; }), testing::HasSubstr("no kernel"));
  Device old = Hopper();
  old.compute_major = 8;
  EXPECT_THAT(MessageOf(GoodSpec(), old), testing::HasSubstr("compute capability 8.x); they need 9.0. Keep plain"));
}

TEST(AttendPlanTest, RunRefusesImpossibleArguments) {
  const AttendPlan plan(GoodSpec(), Hopper());
  const auto message = [&](const AttendArrays& arrays) -> std::string {
    try {
      plan.Run(arrays, nullptr);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  AttendArrays a;
  a.batch_size = 65;
  EXPECT_THAT(message(a), testing::HasSubstr("batch_size=65"));
  a.batch_size = 1;
  EXPECT_THAT(message(a), testing::HasSubstr("must not be null"));
  int32_t number = 0;
  alignas(16) f16_bits values[8] = {};
  a.page_table = a.kv_len = a.row_start = &number;
  a.q = values;
  a.out = values;
  a.workspace = values;
  EXPECT_THAT(message(a), testing::HasSubstr("sink_rows is null"));
  a.sink_rows = reinterpret_cast<const std::byte*>(values);
  a.q_stride = 100;
  EXPECT_THAT(message(a), testing::HasSubstr("strides"));
  a.q_stride = 0;
  a.out = values + 1;
  EXPECT_THAT(message(a), testing::HasSubstr("aligned"));
}

}  // namespace
}  // namespace kvrazor::cuda
