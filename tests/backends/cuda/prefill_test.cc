// Chunked prefill against float64 on the same codes. What is left is rounding: rows read back to f16, weights in f16, sums in f32, f16
// output: relative L2 error 2e-3 over a case; for a single row what those roundings explain at most (PrefillExpected::rounding).
#include "src/backends/cuda/prefill.h"

#include <gmock/gmock.h>

#include <algorithm>
#include <cmath>

#include "kvrazor/error.h"
#include "tests/backends/cuda/prefill_case.h"

namespace kvrazor::cuda {
namespace {

constexpr double kLargestError = 2e-3;
constexpr double kBf16Rounding = 1. / 256;
constexpr double kLargestLseError = 2e-3;
constexpr f16_bits kPoison = 0xffff;

using Sequences = std::vector<PrefillShape::Sequence>;

void ExpectClose(const std::vector<f16_bits>& out, const std::vector<float>& lse, const PrefillExpected& want,
                 const PrefillShape& shape, const PrefillCase& c) {
  const int dim = shape.head_dim, heads = c.num_qo_heads();
  double error = 0, size = 0, worst = 0;
  for (size_t row = 0; row < want.lse.size(); ++row) {
    const int64_t at = static_cast<int64_t>(row) / heads * c.qo_stride() + static_cast<int64_t>(row) % heads * dim;
    double row_error = 0, row_size = 0;
    for (int i = 0; i < dim; ++i) {
      const double got = c.Value(out[at + i]), expected = want.out[row * dim + i];
      ASSERT_TRUE(std::isfinite(got)) << "row " << row << " channel " << i;
      row_error += (got - expected) * (got - expected);
      row_size += expected * expected;
    }
    error += row_error;
    size += row_size;
    ASSERT_LE(std::sqrt(row_error), want.rounding[row] + (shape.bf16 ? kBf16Rounding * std::sqrt(row_size) : 0))
        << "row " << row;
    if (row_size > 0) worst = std::max(worst, std::sqrt(row_error / row_size));
    if (std::isinf(want.lse[row])) {
      EXPECT_EQ(lse[row], want.lse[row]);
      EXPECT_EQ(row_error, 0);
    } else {
      ASSERT_NEAR(lse[row], want.lse[row], kLargestLseError * (1 + std::abs(want.lse[row]))) << "row " << row;
    }
  }
  const double relative = size > 0 ? std::sqrt(error / size) : 0;
  EXPECT_LE(relative, kLargestError + (shape.bf16 ? kBf16Rounding : 0));
  for (size_t i = static_cast<size_t>(c.num_new()) * heads; i < lse.size(); ++i) EXPECT_TRUE(std::isnan(lse[i]));
  for (size_t i = 0; i < out.size(); ++i) {
    const int64_t token = static_cast<int64_t>(i) / c.qo_stride(), column = static_cast<int64_t>(i) % c.qo_stride();
    if (token >= c.num_new() || column >= int64_t{heads} * dim) {
      ASSERT_EQ(out[i], kPoison) << "written between or behind rows, value " << i;
    }
  }
  testing::Test::RecordProperty("relative_l2", std::to_string(relative));
  testing::Test::RecordProperty("worst_row", std::to_string(worst));
}

/// Runs a case three times into poisoned outputs and workspaces: right, and the same bits every time.
void RunCase(const PrefillShape& shape) {
  const PrefillCase c(shape);
  const PrefillPlan plan(c.spec(), CurrentDevice());
  plan.Init();
  PrefillCase::OnDevice device(c, plan);
  std::vector<f16_bits> first;
  for (int run = 0; run < 3; ++run) {
    device.Poison();
    plan.Run(device.arrays(), nullptr);
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
};

class PrefillTest : public testing::TestWithParam<Variant> {
 protected:
  PrefillShape Shape(Sequences sequences) const {
    PrefillShape s;
    s.recipe = GetParam().recipe;
    s.head_dim = GetParam().head_dim;
    s.sequences = std::move(sequences);
    return s;
  }
};

// Lengths around sinks (4), pages (128) and the window (128), chunks around tiles of query rows and pages, empty sequences.
const Sequences kEdges = {{0, 1},    {1, 7},    {3, 64},   {4, 0},   {5, 127},   {127, 128}, {128, 129}, {129, 1},
                          {255, 65}, {256, 64}, {257, 63}, {383, 7}, {640, 130}, {0, 0},     {1000, 33}, {0, 200}};

TEST_P(PrefillTest, LengthsAroundEveryEdge) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  PrefillShape s = Shape(kEdges);
  RunCase(s);
  s.num_kv_heads = 3;
  s.gqa_ratio = 3;
  s.padding = 24;
  RunCase(s);
}

TEST_P(PrefillTest, NewRowsInPages) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  PrefillShape s = Shape(kEdges);  // some shorter than their chunk: its first tokens see nothing
  for (auto& [kv_len, new_len] : s.sequences) kv_len += new_len / 2;
  s.new_rows_in_pages = true;
  RunCase(s);
}

TEST_P(PrefillTest, RowPagesAnywhereAndPackedPagesCutShort) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const double share : {0.3, 1.0}) {
    PrefillShape s = Shape({{1, 40}, {127, 3}, {640, 70}, {1300, 9}, {2049, 128}});
    s.row_page_share = share;
    s.seed = 11;
    RunCase(s);
  }
  PrefillShape s = Shape({{2, 5}, {100, 20}, {128, 128}, {300, 100}, {650, 300}});
  s.packed_to_the_end = true;
  RunCase(s);
}

TEST_P(PrefillTest, FewRowsShareTheirTokens) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const int new_len : {1, 7, 40}) {
    PrefillShape s = Shape({{9000, new_len}});
    s.gqa_ratio = 4;
    RunCase(s);
    s.sequences = {{700, 2}, {6000, new_len}, {0, 3}};
    s.learned_sinks = true;
    s.sliding_window = 5000;
    RunCase(s);
  }
}

TEST_P(PrefillTest, SharpAndFlatSoftmax) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const float key_size : {0.01f, 8.f}) {
    PrefillShape s = Shape({{1500, 60}, {300, 129}, {2100, 20}});
    s.key_size = key_size;
    RunCase(s);
  }
}

TEST_P(PrefillTest, SlidingWindow) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const int window : {1, 100, 128, 129, 512, 5000}) {
    for (const bool causal : {true, false}) {
      if (!causal && window != 129) continue;
      SCOPED_TRACE(testing::Message() << "window " << window << (causal ? "" : ", not causal"));
      PrefillShape s = Shape({{0, 1}, {4, 200}, {127, 130}, {257, 64}, {640, 7}, {1500, 300}, {1500, 0}});
      s.sliding_window = window;
      s.causal = causal;
      RunCase(s);
    }
  }
}

TEST_P(PrefillTest, SoftcapMaskLearnedSinksAndBf16) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (int bits = 1; bits < 16; ++bits) {
    PrefillShape s = Shape({{0, 1}, {130, 64}, {255, 129}, {700, 5}, {0, 0}, {1200, 30}});
    s.softcap = bits & 1 ? 20.f : 0.f;
    s.masked = (bits & 2) != 0;
    s.learned_sinks = (bits & 4) != 0;
    s.bf16 = (bits & 8) != 0;
    s.causal = !s.masked || bits % 3 == 0;
    s.gqa_ratio = 1 + bits % 7;
    s.row_page_share = 0.2;
    s.seed = static_cast<uint32_t>(bits);
    SCOPED_TRACE(testing::Message() << "variant " << bits);
    RunCase(s);
  }
}

Device Hopper() { return {.name = "a device", .compute_major = 9, .num_sms = 132, .shared_bytes = 232448}; }

/// Those that the GPU has pages for, and this build the kernels to read them back.
std::vector<Variant> Possible(std::vector<Variant> variants) {
  std::erase_if(variants, [](const Variant& v) {
    const Recipe recipe = ParseRecipe(v.recipe);
    const HeadShape shape{1, v.head_dim};
    try {
      const auto format = MakePackedFormat(
          {MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)});
      DequantizePlan({.format = format, .max_jobs = 1}, Hopper());
      return false;
    } catch (const Error&) {
      return true;
    }
  });
  return variants;
}

INSTANTIATE_TEST_SUITE_P(Formats, PrefillTest,
                         testing::ValuesIn(Possible({{"razor-2", 128},
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
                                                     {"kivi:v4g32", 128},
                                                     {"quarot", 128},
                                                     {"turboquant-2", 64},
                                                     {"razor-3", 256},
                                                     {"oscar", 256}})),
                         [](const auto& info) {
                           std::string name = info.param.recipe + "_" + std::to_string(info.param.head_dim);
                           std::replace_if(
                               name.begin(), name.end(),
                               [](char c) { return !std::isalnum(static_cast<unsigned char>(c)); }, '_');
                           return name;
                         });

TEST(CudaPrefillTest, EveryGqaRatio) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (int gqa = 1; gqa <= 16; ++gqa) {
    SCOPED_TRACE(gqa);
    PrefillShape s;
    s.head_dim = gqa % 2 ? 128 : 64;
    s.gqa_ratio = gqa;
    s.num_kv_heads = 2;
    s.sequences = {{500, 100}, {130, 7}, {0, 65}};
    s.seed = static_cast<uint32_t>(gqa);
    RunCase(s);
  }
}

TEST(CudaPrefillTest, LongChunksInSeveralWaves) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const int head_dim : {64, 128}) {
    PrefillShape s;
    s.head_dim = head_dim;
    s.num_kv_heads = 8;
    s.gqa_ratio = 4;
    s.sequences = {{1100, 512}, {0, 300}};
    RunCase(s);
  }
}

TEST(CudaPrefillTest, ManySequences) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  PrefillShape s;
  s.recipe = "oscar";
  for (int b = 0; b < 300; ++b) s.sequences.push_back({b * 7919 % 600, b % 7 == 0 ? 0 : b * 31 % 40});
  RunCase(s);
}

TEST(CudaPrefillTest, SequencesWithoutRoomAreNaN) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  for (const int few : {1, 40}) {  // with and without splits
    PrefillShape s;
    s.sequences = {{700, few}, {900, few}};
    s.workspace_tokens = 6 * kPageTokens;  // the first one's
    s.learned_sinks = true;
    s.gqa_ratio = few == 1 ? 2 : 16;
    s.num_kv_heads = few == 1 ? 1 : 8;
    const PrefillCase c(s);
    const PrefillPlan plan(c.spec(), CurrentDevice());
    plan.Init();
    PrefillCase::OnDevice device(c, plan);
    device.Poison();
    plan.Run(device.arrays(), nullptr);
    CheckCuda(cudaDeviceSynchronize());
    const auto out = device.out.Download();
    const auto lse = device.lse.Download();
    for (int row = 0; row < 2 * few; ++row) {
      for (int i = 0; i < c.qo_stride(); ++i) {
        const f16_bits x = out[row * c.qo_stride() + i];
        ASSERT_NE(x, kPoison) << "row " << row << " is not written";
        ASSERT_EQ(std::isnan(c.Value(x)), row >= few) << "row " << row;
      }
      for (int h = 0; h < c.num_qo_heads(); ++h)
        ASSERT_EQ(std::isnan(lse[row * c.num_qo_heads() + h]), row >= few) << "row " << row;
    }
  }
}

TEST(CudaPrefillTest, GraphReplayFollowsLengthsAndTables) {
  KVRAZOR_SKIP_WITHOUT_DEVICE();
  PrefillShape s;
  s.gqa_ratio = 4;
  s.num_kv_heads = 2;
  s.sequences = {{1536, 200}, {128, 56}, {1920, 44}};
  PrefillCase c(s);
  const PrefillPlan plan(c.spec(), CurrentDevice());
  plan.Init();
  PrefillCase::OnDevice device(c, plan);
  cudaStream_t stream;
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CheckCuda(cudaStreamCreate(&stream));
  CheckCuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal));
  plan.Run(device.arrays(), stream);
  CheckCuda(cudaStreamEndCapture(stream, &graph));
  CheckCuda(cudaGraphInstantiate(&executable, graph, 0));
  // Whole pages, so that the page pools stay what they are; always 300 new tokens.
  const std::vector<Sequences> steps = {
      {{128, 300}, {512, 0}, {1920, 0}}, {{0, 1}, {1664, 129}, {256, 170}}, {{1024, 100}, {1024, 100}, {1024, 100}}};
  for (const Sequences& sequences : steps) {
    c.Shuffle(sequences, static_cast<uint32_t>(sequences[0].kv_len));
    device.page_table.Upload(c.page_table());
    device.kv_len.Upload(c.kv_len());
    device.new_begin.Upload(c.new_begin());
    device.Poison();
    CheckCuda(cudaDeviceSynchronize());
    CheckCuda(cudaGraphLaunch(executable, stream));
    CheckCuda(cudaStreamSynchronize(stream));
    const auto replayed = device.out.Download();
    ExpectClose(replayed, device.lse.Download(), c.Reference(), s, c);
    device.Poison();
    plan.Run(device.arrays(), nullptr);
    CheckCuda(cudaDeviceSynchronize());
    EXPECT_EQ(device.out.Download(), replayed) << "plain launch and replay differ";
  }
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  cudaStreamDestroy(stream);
}

// ---- what a plan refuses; needs no device
PrefillSpec GoodSpec() {
  const Recipe recipe = ParseRecipe("razor-2");
  const HeadShape shape{8, 128};
  PrefillSpec s;
  s.format =
      MakePackedFormat({MakePageLayout(recipe.k, Side::kKey, shape), MakePageLayout(recipe.v, Side::kValue, shape)});
  s.num_qo_heads = 32;
  s.max_batch_size = 4;
  s.max_pages = 1024;
  s.max_new_tokens = 2048;
  s.sink_tokens = 4;
  s.softmax_scale = 0.1f;
  return s;
}

std::string MessageOf(const PrefillSpec& spec, const Device& device) {
  try {
    PrefillPlan plan(spec, device);
    return "accepted: " + plan.Explain();
  } catch (const Error& e) {
    return e.what();
  }
}

TEST(PrefillPlanTest, SaysWhatItPicked) {
  const std::string text = MessageOf(GoodSpec(), Hopper());
  EXPECT_THAT(text, testing::HasSubstr("accepted"));
  EXPECT_THAT(text, testing::HasSubstr("warpgroup products"));
  EXPECT_THAT(text, testing::HasSubstr("4 query heads a kv head"));
  EXPECT_THAT(text, testing::HasSubstr("bytes of workspace"));
}

TEST(PrefillPlanTest, WorkspaceHoldsWhatIsAsked) {
  PrefillSpec s = GoodSpec();
  const int64_t token_bytes = int64_t{2} * 8 * 128 * 2;
  const int64_t all = PrefillPlan(s, Hopper()).workspace_bytes();
  EXPECT_GE(all, (4 * 1024 * kPageTokens + 2048) * token_bytes);
  s.workspace_tokens = 1000;  // 8 pages
  const int64_t few = PrefillPlan(s, Hopper()).workspace_bytes();
  s.workspace_tokens = 1025;  // 9 pages
  EXPECT_GE(PrefillPlan(s, Hopper()).workspace_bytes() - few, kPageTokens * token_bytes);
  EXPECT_LT(few, all);
}

TEST(PrefillPlanTest, RefusesWhatItCannotRun) {
  const auto with = [](auto change) {
    PrefillSpec s = GoodSpec();
    change(s);
    return MessageOf(s, Hopper());
  };
  EXPECT_THAT(with([](PrefillSpec& s) { s.num_qo_heads = 12; }), testing::HasSubstr("num_qo_heads=12"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.num_qo_heads = 136; }), testing::HasSubstr("1 to 16 query heads"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.max_batch_size = 0; }), testing::HasSubstr("Split the batch"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.max_batch_size = 2000; }), testing::HasSubstr("Split the batch"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.max_new_tokens = 0; }), testing::HasSubstr("max_new_tokens=0"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.max_new_tokens = 2 << 20; }), testing::HasSubstr("smaller chunks"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.max_pages = 0; }), testing::HasSubstr("max_pages=0"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.max_pages = 1 << 24; }), testing::HasSubstr("too large"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.max_pages = 1 << 23; }), testing::HasSubstr("too many for one run"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.workspace_tokens = -1; }), testing::HasSubstr("workspace_tokens"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.sliding_window = -1; }), testing::HasSubstr("sliding_window=-1"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.softcap = -1; }), testing::HasSubstr("softcap"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.sink_tokens = 17; }), testing::HasSubstr("sink_tokens=17"));
  EXPECT_THAT(with([](PrefillSpec& s) { s.softmax_scale = 0; }), testing::HasSubstr("softmax_scale"));
  for (const int major : {8, 10}) {
    Device other = Hopper();
    other.compute_major = major;
    EXPECT_THAT(MessageOf(GoodSpec(), other), testing::HasSubstr("compute capability " + std::to_string(major)));
  }
}

TEST(PrefillPlanTest, RunRefusesImpossibleArguments) {
  const PrefillPlan plan(GoodSpec(), Hopper());
  const auto message = [&](const PrefillArrays& arrays) -> std::string {
    try {
      plan.Run(arrays, nullptr);
    } catch (const Error& e) {
      return e.what();
    }
    return "accepted";
  };
  PrefillArrays a;
  EXPECT_EQ(message(a), "accepted");  // an empty batch
  a.batch_size = 5;
  EXPECT_THAT(message(a), testing::HasSubstr("batch_size=5"));
  a.batch_size = 1;
  EXPECT_THAT(message(a), testing::HasSubstr("must not be null"));
  int32_t number = 0;
  alignas(256) f16_bits values[256] = {};
  a.page_table = a.kv_len = a.new_begin = &number;
  a.q = values;
  a.out = values;
  a.workspace = values;
  EXPECT_THAT(message(a), testing::HasSubstr("new_rows_in_pages"));
  a.k = a.v = values;
  EXPECT_THAT(message(a), testing::HasSubstr("sink_rows is null"));
  a.sink_rows = reinterpret_cast<const std::byte*>(values);
  a.q_stride = 100;
  EXPECT_THAT(message(a), testing::HasSubstr("q_stride"));
  a.q_stride = 0;
  a.kv_stride = 8;
  EXPECT_THAT(message(a), testing::HasSubstr("kv_stride"));
  a.kv_stride = 0;
  a.out = values + 1;
  EXPECT_THAT(message(a), testing::HasSubstr("aligned"));
  a.out = values;
  a.workspace = values + 8;
  EXPECT_THAT(message(a), testing::HasSubstr("256-byte aligned"));
}

}  // namespace
}  // namespace kvrazor::cuda
