// Every kind of model: its packed layers give the logits of llama.cpp's own cache up to what the recipe costs, its other layers
// stay in 16 bits, which is logged, counted and explained, and refused when packing is required.
#include <gtest/gtest.h>

#include <cmath>
#include <nlohmann/json.hpp>
#include <ostream>
#include <random>
#include <string>
#include <vector>

#include "tests/integrations/ggml/host.h"
#include "tests/integrations/ggml/tiny_model.h"
#include "tests/relative_error.h"

namespace kvrazor::ggml_test {
namespace {

struct ModelClass {
  const char* name;
  int packed_layers;
  int plain_layers = 0;
  const char* reason = "";  ///< part of the explanation of the layers that are not packed
  int chunk = 256;
};

const ModelClass kClasses[] = {
    {"llama", 2},
    {"head80", 0, 2, "80"},
    {"head96", 0, 2, "96"},
    {"keys64_values128", 2},
    {"gqa16", 2},
    {"alibi", 2},
    {"short_window_softcap", 1, 1, "too short to gain", 128},
    {"long_window_softcap", 2},
    {"attention_sinks", 2},
    {"recurrent", 0},
    {"hybrid", 1},
    {"latent_attention", 0, 2, "MLA"},
    {"embedding", 2},
    {"encoder", 0},
    {"encoder_decoder", 0, 2, "flash attention"},
};

void PrintTo(const ModelClass& c, std::ostream* out) { *out << c.name; }

std::string g_log;

void AppendToLog(ggml_log_level level, const char* text, void*) {
  if (level >= GGML_LOG_LEVEL_WARN) g_log += text;
}

struct FreeModel {
  void operator()(llama_model* m) const { llama_model_free(m); }
};
using ModelPtr = std::unique_ptr<llama_model, FreeModel>;

class ModelsTest : public testing::TestWithParam<ModelClass> {
 protected:
  static void SetUpTestSuite() {
    folder_ = new TinyModelFolder;
    llama_log_set(AppendToLog, nullptr);
    llama_backend_init();
    char error[512];
    ASSERT_TRUE(kvrazor_ggml_attach(error, sizeof(error))) << error;
  }
  static void TearDownTestSuite() {
    delete folder_;
    llama_log_set(nullptr, nullptr);
  }

  void SetUp() override {
    model_.reset(llama_model_load_from_file(folder_->Path(GetParam().name).c_str(), llama_model_default_params()));
    ASSERT_TRUE(model_) << g_log;
    g_log.clear();
    kvrazor_ggml_reset_counters();
  }

  ContextPtr New(const std::string& recipe, bool require = false) const {
    ContextOptions options;
    options.recipe = recipe;
    options.require = require;
    options.chunk = GetParam().chunk;
    options.full_window = false;
    options.embeddings = std::string(GetParam().name) == "embedding" || std::string(GetParam().name) == "encoder";
    return NewContext(model_.get(), options);
  }

  /// What the model computes for the tokens behind a prompt: a batch and single tokens; or the embedding of a text.
  std::vector<float> Outputs(llama_context* c) const {
    constexpr int kPrompt = 700, kScored = 40, kSingle = 6;
    const int vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(model_.get()));
    std::mt19937 random(3);
    std::vector<llama_token> text(kPrompt + kScored + kSingle);
    for (llama_token& token : text) token = static_cast<llama_token>(3 + random() % 256);
    std::vector<float> outputs;
    if (llama_model_has_encoder(model_.get()) || !llama_get_memory(c)) {
      llama_batch batch = llama_batch_get_one(text.data(), 100);
      EXPECT_EQ(llama_encode(c, batch), 0);
    }
    if (llama_pooling_type(c) != LLAMA_POOLING_TYPE_NONE) {
      if (llama_get_memory(c)) Decode(c, text.data(), kPrompt, 0);
      const float* embedding = llama_get_embeddings_seq(c, 0);
      EXPECT_TRUE(embedding);
      if (embedding) outputs.assign(embedding, embedding + llama_model_n_embd(model_.get()));
      return outputs;
    }
    const auto append = [&](int i) {
      const float* logits = llama_get_logits_ith(c, i);
      EXPECT_TRUE(logits);
      if (!logits) return;
      outputs.insert(outputs.end(), logits, logits + vocabulary);
    };
    Decode(c, text.data(), kPrompt, 0);
    Decode(c, text.data() + kPrompt, kScored, kPrompt, 0, /*all_logits=*/true);
    for (int i = 0; i < kScored; ++i) append(i);
    for (int i = 0; i < kSingle; ++i) {
      Decode(c, text.data() + kPrompt + kScored + i, 1, kPrompt + kScored + i);
      append(-1);
    }
    return outputs;
  }

  static inline TinyModelFolder* folder_ = nullptr;
  ModelPtr model_;
};

TEST_P(ModelsTest, PackedLayersComputeWhatLlamaComputes) {
  const std::vector<float> want = Outputs(New("off").get());
  for (const float x : want) ASSERT_TRUE(std::isfinite(x));
  // Our storage and attention: all that differs is rounding; ggml sums values in f16.
  const double f16 = test::RelativeError(Outputs(New("f16").get()), want);
  EXPECT_LE(f16, 0.01);
  const bool packs = GetParam().packed_layers > 0;
  // Random weights have no structure that a quantizer could use, and logits that react to every value.
  const double four_bits = test::RelativeError(Outputs(New("oscar:k4g32,v4g32").get()), want);
  EXPECT_LE(four_bits, packs ? 0.15 : 0.0);
  const double razor = test::RelativeError(Outputs(New("razor-2").get()), want);
  EXPECT_LE(razor, packs ? 0.5 : 0.0);
  if (packs) {
    EXPECT_GT(razor, 0) << "nothing was sealed";
  }
  EXPECT_EQ(Stats().state_errors, 0);
  std::printf("    relative error of outputs: f16 %.4f  4 bits %.3f  razor-2 %.3f\n", f16, four_bits, razor);
}

TEST_P(ModelsTest, WhatIsNotPackedIsLoggedCountedAndExplained) {
  const ModelClass& c = GetParam();
  const ContextPtr context = New("razor-2");
  ASSERT_TRUE(context) << g_log;
  Outputs(context.get());
  const kvrazor_ggml_stats stats = Stats();
  EXPECT_EQ(stats.packed_layers, c.packed_layers);
  EXPECT_EQ(stats.f16_layers, c.plain_layers);
  EXPECT_EQ(stats.sealed_pages > 0, c.packed_layers > 0);
  EXPECT_EQ(stats.other_bytes > 0, c.plain_layers > 0);
  EXPECT_EQ(stats.generic_nodes, 0);
  std::string json(kvrazor_ggml_explain(nullptr, 0), ' ');
  kvrazor_ggml_explain(json.data(), json.size() + 1);
  int explained = 0;
  for (const auto& side : nlohmann::json::parse(json)) explained += !side["reason"].get<std::string>().empty();
  if (c.plain_layers == 0) {
    EXPECT_EQ(explained, 0) << json;
    EXPECT_EQ(g_log.find("kvrazor: "), std::string::npos) << g_log;
  } else {
    EXPECT_GE(explained, c.plain_layers) << json;
    EXPECT_NE(json.find(c.reason), std::string::npos) << json;
    EXPECT_NE(g_log.find("kvrazor: "), std::string::npos) << g_log;
    EXPECT_NE(g_log.find(c.reason), std::string::npos) << g_log;
  }
}

TEST_P(ModelsTest, RequireRefusesLayersInSixteenBits) {
  const ContextPtr context = New("razor-2", /*require=*/true);
  EXPECT_EQ(context != nullptr, GetParam().plain_layers == 0) << g_log;
  if (context) return;
  EXPECT_NE(g_log.find(GetParam().reason), std::string::npos) << g_log;
  EXPECT_NE(g_log.find("KVRAZOR_REQUIRE"), std::string::npos) << g_log;
  EXPECT_TRUE(New("razor-2"));  // nothing is left behind
}

INSTANTIATE_TEST_SUITE_P(All, ModelsTest, testing::ValuesIn(kClasses),
                         [](const auto& info) { return std::string(info.param.name); });

}  // namespace
}  // namespace kvrazor::ggml_test
