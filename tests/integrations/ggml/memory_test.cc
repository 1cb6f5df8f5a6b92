// How much memory the cache takes at the worst moment: graphs as llama.cpp makes them for a model of SmolLM2's shape, read in
// batches and token by token, through the plug-in. Values do not matter to bytes, so neither attention nor sealing computes.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "ggml.h"
#include "integrations/ggml/allocation.h"
#include "integrations/ggml/graph_walk.h"
#include "integrations/ggml/kv_buffer.h"
#include "integrations/ggml/settings.h"
#include "tests/integrations/ggml/measured_bytes.h"

namespace kvrazor::ggml {
namespace {

constexpr int kLayers = 30;
constexpr int64_t kHeads = 3, kQueryHeads = 9, kHeadDim = 64, kWidth = kHeads * kHeadDim;
constexpr int64_t kBatch = 512;

/// Writes every byte of a sealed page and adds up nothing.
class IdleBackend : public Backend {
 public:
  const char* name() const override { return "idle"; }
  std::string description() const override { return "idle"; }
  void Rotate(float*, int64_t, int) const override {}
  void Seal(const PageLayout& layout, const f16_bits*, const TokenMask&, const SecondMoment*,
            std::byte* page) const override {
    std::memset(page, 0x5a, static_cast<size_t>(layout.page_bytes));
  }
  void Dequantize(const PageLayout&, const PageSide&, int, int, float*) const override {}
  void AddQueries(SecondMoment&, const QueryRows&, int, int, int) const override {}
  void Attend(const AttendArgs&, Executor&) const override {}
  WorkspaceBytes Workspace(const LayerFormat&, int) const override { return {}; }
};

struct FreeGgml {
  void operator()(ggml_context* c) const { ggml_free(c); }
};
using GgmlContext = std::unique_ptr<ggml_context, FreeGgml>;

GgmlContext NewGgmlContext() {
  return GgmlContext(ggml_init({.mem_size = 4 << 20, .mem_buffer = nullptr, .no_alloc = true}));
}

/// The cache of a model, as llama.cpp allocates it, and the part of its graph that touches it.
class Model {
 public:
  Model(const std::string& recipe, int64_t num_slots) : num_slots_(num_slots), tensors_(NewGgmlContext()) {
    Settings settings = MakeSettings(recipe.c_str(), true);
    settings.quiet = true;
    const ScopedThreadSettings scope(settings);
    size_t planned = 0;
    for (int layer = 0; layer < kLayers; ++layer) {
      for (const char* side : {"k", "v"}) {
        ggml_tensor* t = ggml_new_tensor_3d(tensors_.get(), GGML_TYPE_F16, kWidth, num_slots, 1);
        ggml_set_name(t, ("cache_" + std::string(side) + "_l" + std::to_string(layer)).c_str());
        cache_.push_back(t);
        planned += static_cast<size_t>(Place(t, settings, false).bytes);
      }
    }
    buffer_ = NewCacheBuffer(ggml_backend_cpu_buffer_type(), backend_, planned);
    for (ggml_tensor* t : cache_) {
      t->buffer = buffer_;
      t->data = ggml_backend_buffer_get_base(buffer_);
      EXPECT_EQ(ggml_backend_buffer_init_tensor(buffer_, t), GGML_STATUS_SUCCESS);
    }
    values_.resize(static_cast<size_t>(kBatch * kQueryHeads * kHeadDim), 1.0f);
    mask_.reset(static_cast<std::byte*>(std::calloc(static_cast<size_t>(kBatch * num_slots), 2)));
    planned_ = static_cast<int64_t>(ggml_backend_buffer_get_size(buffer_));
  }
  ~Model() { ggml_backend_buffer_free(buffer_); }
  Model(const Model&) = delete;
  Model& operator=(const Model&) = delete;

  /// Tokens [first, first + count) go through all layers.
  void Read(int64_t first, int64_t count) {
    const GgmlContext context = NewGgmlContext();
    ggml_context* c = context.get();
    ggml_cgraph* graph = ggml_new_graph_custom(c, 1024, false);
    std::vector<int64_t> slots;
    for (int64_t i = 0; i < count; ++i) slots.push_back(first + i);
    const auto input = [&](ggml_type type, int64_t n0, int64_t n1, int64_t n2, void* data) {
      ggml_tensor* t = ggml_new_tensor_3d(c, type, n0, n1, n2);
      t->data = data;
      return t;
    };
    ggml_tensor* rows = input(GGML_TYPE_F32, kWidth, count, 1, values_.data());
    ggml_tensor* index = input(GGML_TYPE_I64, count, 1, 1, slots.data());
    ggml_tensor* mask = input(GGML_TYPE_F16, num_slots_, GGML_PAD(count, 64), 1, mask_.get());
    ggml_tensor* q = input(GGML_TYPE_F32, kHeadDim, count, kQueryHeads, values_.data());
    for (int layer = 0; layer < kLayers; ++layer) {
      ggml_tensor* views[2];
      for (int side = 0; side < 2; ++side) {
        ggml_tensor* t = cache_[static_cast<size_t>(2 * layer + side)];
        Add(graph, ggml_set_rows(c, t, rows, index));
        views[side] =
            ggml_permute(c, ggml_view_3d(c, t, kHeadDim, kHeads, num_slots_, kHeadDim * 2, kWidth * 2, 0), 0, 2, 1, 3);
      }
      ggml_tensor* out = ggml_flash_attn_ext(c, q, views[0], views[1], mask, 0.125f, 0, 0);
      out->data = values_.data();
      Add(graph, out);
    }
    const auto inner = [](ggml_cgraph*) { return GGML_STATUS_SUCCESS; };
    ASSERT_EQ(WalkGraph(graph, SerialExecutor(), inner), GGML_STATUS_SUCCESS);
  }

  CacheBytes bytes() const { return CacheOf(buffer_).bytes(); }
  int64_t planned() const { return planned_; }
  /// As llama.cpp prints it.
  int64_t buffer_bytes() const { return static_cast<int64_t>(ggml_backend_buffer_get_size(buffer_)); }

 private:
  static void Add(ggml_cgraph* graph, ggml_tensor* node) {
    ggml_build_forward_expand(graph, node);
    node->flags |= GGML_TENSOR_FLAG_COMPUTE;
  }

  struct FreeMemory {
    void operator()(std::byte* p) const { std::free(p); }
  };
  int64_t num_slots_;
  IdleBackend backend_;
  GgmlContext tensors_;
  std::vector<ggml_tensor*> cache_;
  ggml_backend_buffer_t buffer_ = nullptr;
  std::vector<float> values_;
  std::unique_ptr<std::byte, FreeMemory> mask_;
  int64_t planned_ = 0;
};

int64_t ResidentBytes() {
  long total = 0, resident = 0;
  FILE* file = std::fopen("/proc/self/statm", "r");
  if (!file || std::fscanf(file, "%ld %ld", &total, &resident) != 2) ADD_FAILURE() << "/proc/self/statm";
  if (file) std::fclose(file);
  return resident * sysconf(_SC_PAGESIZE);
}

int64_t SumOfKinds(const CacheBytes& b) { return b.packed + b.staging + b.exact + b.table + b.other; }

class Memory : public testing::TestWithParam<MeasuredBytes> {};

TEST_P(Memory, WorstMomentOfAFullContext) {
  const MeasuredBytes want = GetParam();
  Model model(want.recipe, want.context);
  const int64_t before = ResidentBytes();
  int64_t read = 0;
  for (; read + kBatch < want.context; read += kBatch) model.Read(read, kBatch);
  EXPECT_EQ(model.bytes().total, SumOfKinds(model.bytes()));
  // Token by token: with 255 tokens behind the last sealed page a cache holds the most.
  for (; read < want.context; ++read) model.Read(read, 1);

  const CacheBytes end = model.bytes();
  EXPECT_EQ(end.total, SumOfKinds(end));
  const auto f16 = static_cast<double>(kLayers * 2 * kWidth * 2 * want.context);
  EXPECT_EQ(static_cast<double>(end.f16_equivalent), f16);
  EXPECT_NEAR(static_cast<double>(end.peak), static_cast<double>(want.bytes), 1e-3 * static_cast<double>(want.bytes));
  EXPECT_GE(f16 / static_cast<double>(end.peak), want.smaller_at_least);
  // What llama.cpp prints before the first token is this.
  EXPECT_NEAR(static_cast<double>(model.planned()), static_cast<double>(end.peak),
              0.01 * static_cast<double>(end.peak));
  EXPECT_GE(model.buffer_bytes(), end.peak);
  // The system says the same, less the heads of what malloc gave, plus what ggml and the test took. Sanitizers keep more
  // memory about every byte than this allows.
  const int64_t grown = ResidentBytes() - before;
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)
  EXPECT_NEAR(static_cast<double>(grown), static_cast<double>(end.total),
              0.01 * static_cast<double>(end.total) + (1 << 20));
#endif
  std::printf(
      "%-8s %6ld tokens: peak %ld bytes, %.3fx below f16; now packed %ld staging %ld exact %ld tables %ld (grown "
      "%ld)\n",
      want.recipe, long{want.context}, long{end.peak}, f16 / static_cast<double>(end.peak), long{end.packed},
      long{end.staging}, long{end.exact}, long{end.table}, long{grown});
}

TEST_P(Memory, WorstMomentOfAPrompt) {
  const MeasuredBytes want = GetParam();
  Model model(want.recipe, want.context);
  for (int64_t read = 0; read < want.context; read += kBatch) model.Read(read, kBatch);
  const CacheBytes end = model.bytes();
  EXPECT_EQ(end.total, SumOfKinds(end));
  EXPECT_GE(static_cast<double>(end.f16_equivalent) / static_cast<double>(end.peak), want.in_batches_at_least);
  std::printf("%-8s %6ld tokens in batches: peak %ld bytes, %.3fx below f16\n", want.recipe, long{want.context},
              long{end.peak}, static_cast<double>(end.f16_equivalent) / static_cast<double>(end.peak));
}

INSTANTIATE_TEST_SUITE_P(SmolLM2, Memory, testing::ValuesIn(kMeasuredBytes), [](const auto& info) {
  std::string name = std::string(info.param.recipe) + "_" + std::to_string(info.param.context);
  std::replace(name.begin(), name.end(), '-', '_');
  return name;
});

// A batch of a prompt is in 16 bits in one layer at a time: beside each layer's window only the pages of one layer.
TEST(MemoryOfBatches, OnlyOneLayerHoldsABatchIn16Bits) {
  Model model("razor-2", 8192);
  for (int64_t read = 0; read < 4096; read += kBatch) model.Read(read, kBatch);
  const CacheBytes b = model.bytes();
  const int64_t page = kPageTokens * kWidth * 2;
  EXPECT_EQ(b.staging, kLayers * 2 * page);
  EXPECT_EQ(b.staging_peak, kLayers * 2 * page + 2 * (kBatch / kPageTokens) * page);
}

}  // namespace
}  // namespace kvrazor::ggml
