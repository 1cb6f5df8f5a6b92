// Caches that cannot be packed work as llama.cpp's own, are counted and explained, and are refused when packing is
// required.
#include <gtest/gtest.h>
#include <unistd.h>

#include <nlohmann/json.hpp>

#include <string>

#include "tests/integrations/ggml/host.h"

namespace kvrazor::ggml_test {
namespace {

struct Unpackable {
  const char* name;
  ContextOptions options;
  const char* reason;  // part of the explanation
};

std::vector<Unpackable> Cases() {
  ContextOptions fa_off, q8, shorter;
  fa_off.flash_attention = LLAMA_FLASH_ATTN_TYPE_DISABLED;
  q8.key_type = GGML_TYPE_Q8_0;
  shorter.num_tokens = 256;
  for (ContextOptions* o : {&fa_off, &q8, &shorter}) o->recipe = "oscar";
  return {
      {"FlashAttentionOff", fa_off, "-fa off"}, {"QuantizedKeys", q8, "q8_0"}, {"ShortContext", shorter, "too short"}};
}

class FallbackTest : public testing::TestWithParam<Unpackable> {
 protected:
  void SetUp() override {
    if (!Host::Get()) GTEST_SKIP() << Host::SkipReason();
  }
};

TEST_P(FallbackTest, WorksLikeStockAndSaysWhy) {
  const llama_token* t = Host::Get()->text().data();
  ContextOptions options = GetParam().options;
  const auto loss = [&](llama_context* c) {
    Decode(c, t, 160, 0);
    return Loss(c, t + 160, 33, 160);
  };
  kvrazor_ggml_reset_counters();
  double got = 0;
  {
    const ContextPtr c = Host::Get()->NewContext(options);
    ASSERT_TRUE(c);
    got = loss(c.get());
    const kvrazor_ggml_stats stats = Stats();
    const int num_layers = Host::Get()->num_layers();
    EXPECT_EQ(stats.num_layers, num_layers);
    EXPECT_EQ(stats.f16_layers, num_layers);
    EXPECT_EQ(stats.packed_layers, 0);
    EXPECT_EQ(stats.packed_bytes, 0);
    EXPECT_GT(stats.other_bytes, 0);
    EXPECT_EQ(stats.generic_nodes, 0);
    std::string json(kvrazor_ggml_explain(nullptr, 0), ' ');
    kvrazor_ggml_explain(json.data(), json.size() + 1);
    const nlohmann::json sides = nlohmann::json::parse(json);
    ASSERT_EQ(std::ssize(sides), 2 * num_layers);
    bool found = false;
    for (const auto& side : sides) {
      EXPECT_NE(side["reason"], "");
      found |= side["reason"].get<std::string>().find(GetParam().reason) != std::string::npos;
    }
    EXPECT_TRUE(found) << json.substr(0, 400);
  }
  options.recipe = "off";
  const ContextPtr stock = Host::Get()->NewContext(options);
  EXPECT_EQ(loss(stock.get()), got);  // the very same computation
}

TEST_P(FallbackTest, RequireRefusesTheContext) {
  ContextOptions options = GetParam().options;
  options.require = true;
  EXPECT_FALSE(Host::Get()->NewContext(options));
  // and leaves nothing behind that would refuse the next one
  options = {};
  options.recipe = "oscar";
  options.require = true;
  EXPECT_TRUE(Host::Get()->NewContext(options));
}

INSTANTIATE_TEST_SUITE_P(All, FallbackTest, testing::ValuesIn(Cases()),
                         [](const auto& info) { return info.param.name; });

TEST(Settings, BadRecipesAreRefusedWithTheSentenceThatHelps) {
  char error[512] = "";
  EXPECT_FALSE(kvrazor_ggml_set_recipe("oskar", false, error, sizeof(error)));
  EXPECT_NE(std::string(error).find("oskar"), std::string::npos) << error;
  EXPECT_FALSE(kvrazor_ggml_set_recipe(nullptr, false, error, sizeof(error)));
}

TEST(Memory, BytesAddUpAndAreFarBelowF16) {
  if (!Host::Get()) GTEST_SKIP() << Host::SkipReason();
  const llama_token* t = Host::Get()->text().data();
  ContextOptions options;
  options.recipe = "razor-2";
  const ContextPtr c = Host::Get()->NewContext(options);
  Decode(c.get(), t, 1020, 0);
  const kvrazor_ggml_stats s = Stats();
  constexpr int64_t kPageBytes = 128 * 192 * 2;  // 16 bits
  EXPECT_EQ(s.f16_equivalent_bytes, 60 * 8 * kPageBytes);
  // 1020 tokens: 7 full pages, one of them still in 16 bits, and the page being filled.
  EXPECT_EQ(s.staging_bytes, 60 * 2 * kPageBytes);
  EXPECT_GE(s.staging_peak_bytes, s.staging_bytes);
  EXPECT_EQ(s.exact_bytes, 60 * 4 * 192 * 2);
  EXPECT_NEAR(s.bits_per_value, 2.25, 0.06);
  const double sealed_bytes = s.bits_per_value / 8 * 60 * 6 * 128 * 192;
  EXPECT_GE(static_cast<double>(s.packed_bytes), sealed_bytes);
  EXPECT_LE(static_cast<double>(s.packed_bytes), sealed_bytes + 60.0 * static_cast<double>(sysconf(_SC_PAGESIZE)));
  EXPECT_EQ(s.total_bytes, s.packed_bytes + s.staging_bytes + s.exact_bytes + s.table_bytes + s.other_bytes);
  EXPECT_GE(s.peak_bytes, s.total_bytes);
  EXPECT_LT(s.peak_bytes, s.f16_equivalent_bytes / 2);
}

}  // namespace
}  // namespace kvrazor::ggml_test
