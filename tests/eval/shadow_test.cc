// Shadow mode against the packed cache, and with every kind of model.
#include "eval/shadow.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <string>
#include <vector>

#include "kvrazor/error.h"
#include "reference/rotate_kv.h"
#include "src/core/half.h"
#include "tests/integrations/ggml/tiny_model.h"
#include "tests/relative_error.h"

namespace kvrazor::eval {
namespace {

using ::testing::HasSubstr;

constexpr int kPrompt = 650, kSingle = 8;  // five full pages; the oldest three or four are sealed
constexpr int kContext = 1024;

ggml_test::TinyModelFolder& Folder() {
  static ggml_test::TinyModelFolder folder;
  return folder;
}

std::vector<llama_token> Text() {
  std::mt19937 random(5);
  std::vector<llama_token> text(kPrompt + kSingle);
  for (llama_token& token : text) token = static_cast<llama_token>(3 + random() % 256);
  return text;
}

/// A layer's keys and values as a saved state holds them: f16 rows.
struct Contents {
  std::vector<float> logits;             // of the single tokens behind the prompt
  std::vector<std::vector<float>> rows;  // [2 layer + side]
};

template <class T>
T Take(const std::vector<uint8_t>& bytes, size_t& at) {
  T value;
  std::memcpy(&value, bytes.data() + at, sizeof(T));
  at += sizeof(T);
  return value;
}

/// The state ends with, for each layer, its keys and then for each layer its values: {int32 type, uint64 row bytes, rows}.
std::vector<std::vector<float>> RowsOfState(llama_context* context, int num_layers, size_t row_bytes, size_t num_rows) {
  std::vector<uint8_t> state(llama_state_seq_get_size(context, 0));
  EXPECT_EQ(llama_state_seq_get_data(context, state.data(), state.size(), 0), state.size());
  const size_t block = sizeof(int32_t) + sizeof(uint64_t) + num_rows * row_bytes;
  const size_t blocks = 2 * static_cast<size_t>(num_layers);
  std::vector<std::vector<float>> rows(blocks);
  if (state.size() < blocks * block) {
    ADD_FAILURE() << "the state has " << state.size() << " bytes";
    return rows;
  }
  size_t at = state.size() - blocks * block;
  for (size_t b = 0; b < blocks; ++b) {
    EXPECT_EQ(Take<int32_t>(state, at), static_cast<int32_t>(GGML_TYPE_F16));
    EXPECT_EQ(Take<uint64_t>(state, at), row_bytes);
    const size_t layer = b % static_cast<size_t>(num_layers), side = b / static_cast<size_t>(num_layers);
    for (size_t i = 0; i < num_rows * row_bytes / 2; ++i)
      rows[2 * layer + side].push_back(F32FromF16(Take<f16_bits>(state, at)));
  }
  return rows;
}

/// What a model computes for the text with a cache, packed or in shadow mode.
Contents RunText(llama_model* model, const std::string& cache_name, bool in_shadow, size_t row_bytes) {
  const CacheChoice cache = ParseCacheChoice(cache_name);
  std::optional<ShadowCache> shadow;
  if (in_shadow) shadow.emplace(ParseRecipe(cache.recipe), llama_model_n_layer(model), /*threads=*/2);
  const ContextPtr context = MakeContext(model, in_shadow ? ParseCacheChoice("f16") : cache,
                                         {.context = kContext,
                                          .batch = 128,
                                          .on_node = in_shadow ? ShadowCache::OnNode : nullptr,
                                          .on_node_data = in_shadow ? &*shadow : nullptr});
  const std::vector<llama_token> text = Text();
  const auto end_batch = [&](int64_t) {
    if (shadow) shadow->EndBatch();
  };
  Contents contents;
  Feed(context.get(), std::span(text).first(kPrompt), 0, end_batch);
  for (int i = 0; i < kSingle; ++i) {
    Feed(context.get(), std::span(text).subspan(static_cast<size_t>(kPrompt + i), 1), kPrompt + i, end_batch);
    const std::span<const float> logits = LastLogits(context.get());
    contents.logits.insert(contents.logits.end(), logits.begin(), logits.end());
  }
  if (row_bytes > 0)
    contents.rows = RowsOfState(context.get(), llama_model_n_layer(model), row_bytes, kPrompt + kSingle);
  return contents;
}

// Both modes seal the same pages of the first layer from the same rows: these come from embeddings alone. So their values are equal
// to the bit. In the second layer a row differs by what attention differs in: the rounding of the two implementations, which the
// caches that keep 16 bits show, and that of dequantized values to f16, at most 2^-11 of each (2^-11 / sqrt(3) in the mean square).
// Call this d, relative to a value's own size. With steps of s such a difference moves a value over the border between two codes with
// a probability of |d| / s, and then by s: a mean square of s |d|. Two bits have steps of at most 1.5 standard deviations here, and
// |d| is 0.8 d in the mean. What that does to the logits is in proportion to what the whole loss of the rows does to them.
TEST(ShadowTest, AgreesWithThePackedCache) {
  if (!HavePlugin()) GTEST_SKIP() << "built without the plug-in";
  setenv("KVRAZOR_STATE", "rows", 1);  // states as stock llama.cpp writes them
  CaptureLogs(false);
  const ModelPtr model = LoadModel(Folder().Path("llama"));
  constexpr size_t kRowBytes = 2 * 64 * 2;  // two heads of 64
  const Contents f16 = RunText(model.get(), "f16", false, kRowBytes);
  const Contents own_f16 = RunText(model.get(), "kvrazor:f16", false, kRowBytes);
  const double logits_of_rounding = test::RelativeError(own_f16.logits, f16.logits);
  for (const char* recipe :
       {"kivi", "oscar", "razor-2", "razor-2:sinks=0,residual=256", "ott:exact-from=0", "turboquant-2;1=kivi"}) {
    SCOPED_TRACE(recipe);
    const Contents packed = RunText(model.get(), recipe, false, kRowBytes);
    const Contents shadow = RunText(model.get(), recipe, true, kRowBytes);
    EXPECT_EQ(shadow.rows[0], packed.rows[0]);
    EXPECT_EQ(shadow.rows[1], packed.rows[1]);
    double worst = 0;  // of what the rows lost, how much of it they differ by
    for (const size_t side : {2, 3}) {
      const double d = test::RelativeError(own_f16.rows[side], f16.rows[side]) + std::exp2(-11) / std::sqrt(3.0);
      const double tolerance = std::sqrt(1.5 * 0.8 * d);
      const double lost = test::RelativeError(packed.rows[side], f16.rows[side]);
      EXPECT_LE(test::RelativeError(shadow.rows[side], packed.rows[side]), tolerance);
      EXPECT_GT(lost, 5 * tolerance) << "nothing was sealed";
      worst = std::max(worst, tolerance / lost);
    }
    EXPECT_LE(test::RelativeError(shadow.logits, packed.logits),
              2 * logits_of_rounding + worst * test::RelativeError(packed.logits, f16.logits));
  }
  unsetenv("KVRAZOR_STATE");
}

struct ModelClass {
  const char* name;
  const char* refusal = "";  ///< empty: it works
};
void PrintTo(const ModelClass& c, std::ostream* out) { *out << c.name; }

class ShadowModelsTest : public testing::TestWithParam<ModelClass> {};

TEST_P(ShadowModelsTest, IsQuantizedOrRefused) {
  CaptureLogs(false);
  const ModelPtr model = LoadModel(Folder().Path(GetParam().name));
  ShadowCache shadow(ParseRecipe("razor-2"), llama_model_n_layer(model.get()), /*threads=*/1);
  const auto run = [&](ShadowCache* with) {
    const ContextPtr context = MakeContext(
        model.get(), ParseCacheChoice("f16"),
        {.context = kContext, .batch = 128, .on_node = with ? ShadowCache::OnNode : nullptr, .on_node_data = with});
    const std::vector<llama_token> text = Text();
    if (llama_model_has_encoder(model.get())) {
      std::vector<llama_token> read = Text();
      EXPECT_EQ(llama_encode(context.get(), llama_batch_get_one(read.data(), 50)), 0);
    }
    Feed(context.get(), text, 0, [&](int64_t) {
      if (with) with->EndBatch();
    });
    const std::span<const float> logits = LastLogits(context.get());
    return std::vector<float>(logits.begin(), logits.end());
  };
  if (*GetParam().refusal) {
    try {
      run(&shadow);
      FAIL() << "not refused";
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr(GetParam().refusal));
    }
    return;
  }
  const std::vector<float> want = run(nullptr);
  const std::vector<float> got = run(&shadow);
  for (const float x : got) ASSERT_TRUE(std::isfinite(x));
  EXPECT_GT(test::RelativeError(got, want), 1e-5) << "nothing was overwritten";
  EXPECT_LT(test::RelativeError(got, want), 1);
  const KvUsage usage = shadow.Usage();
  EXPECT_GT(usage.sealed_bytes, 0);
  EXPECT_LT(usage.bytes, usage.f16_bytes);
}

INSTANTIATE_TEST_SUITE_P(All, ShadowModelsTest,
                         testing::Values(ModelClass{"llama"}, ModelClass{"head80"}, ModelClass{"head96"},
                                         ModelClass{"keys64_values128"}, ModelClass{"gqa16"}, ModelClass{"alibi"},
                                         ModelClass{"short_window_softcap"}, ModelClass{"long_window_softcap"},
                                         ModelClass{"attention_sinks"}, ModelClass{"hybrid"},
                                         ModelClass{"encoder_decoder"}, ModelClass{"recurrent", "no keys and values"},
                                         ModelClass{"latent_attention", "(MLA)"}),
                         [](const auto& info) { return std::string(info.param.name); });

// Heads of 80 values are sealed as heads of 128: what is stored counts against the values that there are.
TEST(ShadowTest, FilledUpHeadsCountTheirBits) {
  CaptureLogs(false);
  const ModelPtr model = LoadModel(Folder().Path("head80"));
  ShadowCache shadow(ParseRecipe("kivi"), llama_model_n_layer(model.get()), /*threads=*/1);
  const ContextPtr context =
      MakeContext(model.get(), ParseCacheChoice("f16"),
                  {.context = kContext, .batch = 128, .on_node = ShadowCache::OnNode, .on_node_data = &shadow});
  Feed(context.get(), Text(), 0, [&](int64_t) { shadow.EndBatch(); });
  const KvUsage usage = shadow.Usage();
  EXPECT_DOUBLE_EQ(usage.page_bits_per_value, 3.0 * 128 / 80);
  // Five full pages and a part: four pages of two layers and two sides are sealed, the rest is in 16 bits.
  constexpr int64_t kRows = kPrompt + kSingle, kSealed = 4 * kPageTokens, kWidth = 2 * 80;
  EXPECT_EQ(usage.f16_bytes, 4 * kRows * kWidth * 2);
  EXPECT_EQ(usage.staging_bytes, 4 * (kRows - kSealed) * kWidth * 2);
  EXPECT_EQ(usage.sealed_bytes, 4 * kSealed * 2 * 128 * 3 / 8);
}

/// Sums over the tiny model's text, and what the file would hold.
Calibration Calibrate(llama_model* model) {
  KeyChannelSums sums;
  const ContextPtr context =
      MakeContext(model, ParseCacheChoice("f16"),
                  {.context = kContext, .batch = 128, .on_node = KeyChannelSums::OnNode, .on_node_data = &sums});
  Feed(context.get(), Text(), 0, [&](int64_t) { sums.EndBatch(); });
  return sums.Result();
}

// The first layer's keys come from embeddings: what the 16-bit cache holds of them, with RoPE undone here, is what RotateKV is given.
// Its RoPE is llama's: neighbours, base 10000. Rows are in f16, before and after; the tolerance is that of a page (rotate_kv_test.cc).
TEST(ShadowTest, RotateKvIsThatOfFloat64OnAModelsKeys) {
  CaptureLogs(false);
  const ModelPtr model = LoadModel(Folder().Path("llama"));
  const Calibration calibration = Calibrate(model.get());
  constexpr int kDim = 64, kWidth = 2 * kDim;
  EXPECT_EQ(calibration.tokens, kPrompt + kSingle);
  EXPECT_EQ(std::ssize(calibration.layers), llama_model_n_layer(model.get()));
  const std::vector<int32_t>& order = calibration.layers.at(0).order;

  const auto keys_of = [&](ShadowCache* shadow) {
    const ContextPtr context = MakeContext(
        model.get(), ParseCacheChoice("f16"),
        {.context = kContext, .batch = 128, .on_node = shadow ? ShadowCache::OnNode : nullptr, .on_node_data = shadow});
    Feed(context.get(), Text(), 0, [&](int64_t) {
      if (shadow) shadow->EndBatch();
    });
    return RowsOfState(context.get(), llama_model_n_layer(model.get()), kWidth * 2, kPrompt + kSingle);
  };
  const std::vector<float> f16 = keys_of(nullptr)[0];
  ShadowCache shadow(ParseRecipe("rotatekv"), llama_model_n_layer(model.get()), /*threads=*/2, &calibration);
  const std::vector<std::vector<float>> quantized = keys_of(&shadow);
  const auto before_rope = [&](const std::vector<float>& rows, int token) {
    std::vector<double> key(rows.begin() + token * kWidth, rows.begin() + (token + 1) * kWidth);
    for (int h = 0; h < 2; ++h) reference::RopeHead(key.data() + h * kDim, kDim, -token, 10000, /*neighbours=*/true);
    return key;
  };

  std::vector<double> sums(kWidth);
  int num_exact = 0;
  double lost = 0, difference = 0;
  for (int t = 0; t < kPrompt + kSingle; ++t) {
    const std::vector<double> key = before_rope(f16, t), got = before_rope(quantized[0], t);
    const std::vector<double> rotated = reference::RotateRuns(key, kWidth);
    for (size_t i = 0; i < kWidth; ++i) sums[i] += rotated[i];
    const bool is_same =
        std::equal(f16.begin() + t * kWidth, f16.begin() + (t + 1) * kWidth, quantized[0].begin() + t * kWidth);
    if (t >= 4 * kPageTokens) {
      EXPECT_TRUE(is_same) << t << " is not in a sealed page";
      continue;
    }
    if (is_same) {
      ++num_exact;
      continue;
    }
    const reference::RotateKvKey want = reference::QuantizeRotateKv(key, kWidth, {order.begin(), order.end()},
                                                                    ParseRecipe("rotatekv").k, std::exp2(-8));
    double square = 0, size = 0;
    for (size_t i = 0; i < kWidth; ++i) {
      square += std::pow(got[i] - want.key[i], 2);
      size += std::pow(want.key[i], 2);
      lost += std::pow(got[i] - key[i], 2);
    }
    EXPECT_LE(std::sqrt(square), std::sqrt(want.slack_square) + std::exp2(-8) * std::sqrt(size)) << "token " << t;
    difference += square;
  }
  EXPECT_LT(difference, 0.05 * lost);
  EXPECT_GE(num_exact, 1) << "tokens of the largest entries";
  EXPECT_LE(num_exact, kMassiveEntries * 4) << "at most so many at each time that a page was sealed";
  for (size_t j = 1; j < kWidth; ++j)  // in order, up to the rounding of f16 rows
    EXPECT_LE(sums[static_cast<size_t>(order[j - 1])], sums[static_cast<size_t>(order[j])] + 0.5) << j;
  const KvUsage usage = shadow.Usage();
  // Bits of a page count the tokens that were chosen, in both layers.
  EXPECT_GT(usage.page_bits_per_value, 3);
  EXPECT_NEAR(usage.page_bits_per_value,
              3 + 8.0 * static_cast<double>(usage.sink_bytes) / (2 * 2 * 4 * kPageTokens * kWidth), 1e-9);
  EXPECT_EQ(usage.num_layers, 2);
}

TEST(ShadowTest, RotateKvSaysWhatItCannotDo) {
  CaptureLogs(false);
  EXPECT_THROW(ShadowCache(ParseRecipe("rotatekv"), 2, 1), Error) << "without a calibration";
  EXPECT_NO_THROW(ShadowCache(ParseRecipe("rotatekv"), 2, 1, std::make_unique<Calibration>().get()));
  const ModelPtr heads_of_80 = LoadModel(Folder().Path("head80"));
  EXPECT_THROW(Calibrate(heads_of_80.get()), Error);
  const ModelPtr recurrent = LoadModel(Folder().Path("recurrent"));
  EXPECT_THROW(Calibrate(recurrent.get()), Error);
  // Another model's: as many layers, other heads.
  const ModelPtr llama = LoadModel(Folder().Path("llama"));
  const ModelPtr other = LoadModel(Folder().Path("gqa16"));
  const Calibration calibration = Calibrate(other.get());
  ShadowCache shadow(ParseRecipe("rotatekv"), 2, 1, &calibration);
  const ContextPtr context =
      MakeContext(llama.get(), ParseCacheChoice("f16"),
                  {.context = kContext, .batch = 128, .on_node = ShadowCache::OnNode, .on_node_data = &shadow});
  EXPECT_THROW(Feed(context.get(), Text(), 0, [&](int64_t) { shadow.EndBatch(); }), Error);
}

// No RoPE (ALiBi), a window, logits in other units: keys are found before RoPE wherever there is one.
TEST(ShadowTest, RotateKvOnOtherModels) {
  CaptureLogs(false);
  for (const char* name : {"alibi", "gqa16", "long_window_softcap", "attention_sinks", "hybrid", "embedding"}) {
    SCOPED_TRACE(name);
    const ModelPtr model = LoadModel(Folder().Path(name));
    const Calibration calibration = Calibrate(model.get());
    ShadowCache shadow(ParseRecipe("rotatekv"), llama_model_n_layer(model.get()), 1, &calibration);
    const ContextPtr context =
        MakeContext(model.get(), ParseCacheChoice("f16"),
                    {.context = kContext, .batch = 128, .on_node = ShadowCache::OnNode, .on_node_data = &shadow});
    Feed(context.get(), Text(), 0, [&](int64_t) { shadow.EndBatch(); });
    EXPECT_GT(shadow.Usage().sealed_bytes, 0);
    EXPECT_LT(shadow.Usage().page_bits_per_value, 5);
  }
}

}  // namespace
}  // namespace kvrazor::eval
