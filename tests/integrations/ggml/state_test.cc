// Saving and restoring through llama.cpp's own functions: exact where pages line up, and safe with damaged or foreign
// data.
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <random>
#include <string>
#include <vector>

#include "tests/integrations/ggml/host.h"

namespace kvrazor::ggml_test {
namespace {

constexpr int kPrompt = 600;  // four full pages and a part of the fifth

std::vector<uint8_t> Save(llama_context* c, int sequence = 0) {
  std::vector<uint8_t> state(llama_state_seq_get_size(c, sequence));
  EXPECT_EQ(llama_state_seq_get_data(c, state.data(), state.size(), sequence), state.size());
  return state;
}

/// Logits after a few more single tokens, which seal one more page.
std::vector<float> Continue(llama_context* c, const llama_token* t, int sequence = 0) {
  Decode(c, t + kPrompt, 60, kPrompt, sequence);
  for (int i = 60; i < 64; ++i) Decode(c, t + kPrompt + i, 1, kPrompt + i, sequence);
  return LastLogits(c);
}

class StateTest : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    if (!Host::Get()) GTEST_SKIP() << Host::SkipReason();
    tokens_ = Host::Get()->text().data();
    kvrazor_ggml_reset_counters();
  }
  ContextPtr New(int num_sequences = 1, bool unified = false, const char* recipe = nullptr) const {
    ContextOptions options;
    options.recipe = recipe ? recipe : GetParam();
    options.num_sequences = num_sequences;
    options.unified = unified;
    return Host::Get()->NewContext(options);
  }
  const llama_token* tokens_ = nullptr;
};

TEST_P(StateTest, RestoredContextEqualsOneThatNeverStopped) {
  const ContextPtr first = New();
  Decode(first.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(first.get());
  const std::vector<float> want = Continue(first.get(), tokens_);

  const ContextPtr second = New();
  ASSERT_EQ(llama_state_seq_set_data(second.get(), state.data(), state.size(), 0), state.size());
  EXPECT_EQ(Continue(second.get(), tokens_), want);
  EXPECT_EQ(Stats().state_errors, 0);
}

TEST_P(StateTest, SavingWhatWasRestoredGivesTheSameBytes) {
  const ContextPtr first = New();
  Decode(first.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(first.get());
  const ContextPtr second = New();
  ASSERT_EQ(llama_state_seq_set_data(second.get(), state.data(), state.size(), 0), state.size());
  EXPECT_EQ(Save(second.get()), state);
}

TEST_P(StateTest, PagesThatDoNotLineUpCostOneMoreSealing) {
  const ContextPtr first = New();
  Decode(first.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(first.get());
  const double want = Loss(first.get(), tokens_ + kPrompt, 65, kPrompt);

  const ContextPtr second = New(/*num_sequences=*/2, /*unified=*/true);
  Decode(second.get(), tokens_ + 900, 50, 0, 1);  // takes slots 0 .. 49
  ASSERT_EQ(llama_state_seq_set_data(second.get(), state.data(), state.size(), 0), state.size());
  const double got = Loss(second.get(), tokens_ + kPrompt, 65, kPrompt);
  EXPECT_LE(got - want, 0.08);
  EXPECT_EQ(Stats().state_errors, 0);
  std::printf("    loss %.4f, restored elsewhere %+.4f\n", want, got - want);
}

TEST_P(StateTest, DamageIsReportedAndStaysInItsSequence) {
  const ContextPtr first = New(2);
  Decode(first.get(), tokens_, kPrompt, 0);
  std::vector<uint8_t> state = Save(first.get());
  // Byte 200 of every carrier: sealed codes.
  constexpr std::array<uint8_t, 4> kMagic = {0xff, 0xff, 'k', 'v'};
  int damaged = 0;
  for (auto at = state.begin();; at += 4) {
    at = std::search(at, state.end(), kMagic.begin(), kMagic.end());
    if (at == state.end()) break;
    at[200] ^= 4;
    ++damaged;
  }
  ASSERT_GT(damaged, 0) << "no sealed page was saved";

  const auto other_sequence = [&](bool with_damage) {
    const ContextPtr c = New(2);
    Decode(c.get(), tokens_ + 500, 300, 0, 1);
    if (with_damage) llama_state_seq_set_data(c.get(), state.data(), state.size(), 0);
    Decode(c.get(), tokens_ + 800, 20, 300, 1);
    return LastLogits(c.get());
  };
  const std::vector<float> want = other_sequence(false);
  EXPECT_EQ(other_sequence(true), want);
  EXPECT_EQ(Stats().state_errors, damaged);
}

TEST_P(StateTest, AnotherRecipeIsRefused) {
  const ContextPtr first = New();
  Decode(first.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(first.get());
  for (const char* recipe : {"kivi", "f16"}) {
    kvrazor_ggml_reset_counters();
    const ContextPtr second = New(1, false, recipe);
    llama_state_seq_set_data(second.get(), state.data(), state.size(), 0);
    EXPECT_GT(Stats().state_errors, 0) << recipe;
    for (const float x : Continue(second.get(), tokens_)) ASSERT_TRUE(std::isfinite(x)) << recipe;
  }
}

TEST_P(StateTest, RowsOfAStockStateAreAccepted) {
  const ContextPtr stock = New(1, false, "off");
  Decode(stock.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(stock.get());
  const double want = Loss(stock.get(), tokens_ + kPrompt, 65, kPrompt);
  const ContextPtr packed = New();
  ASSERT_EQ(llama_state_seq_set_data(packed.get(), state.data(), state.size(), 0), state.size());
  EXPECT_LE(Loss(packed.get(), tokens_ + kPrompt, 65, kPrompt) - want, 0.12);
  EXPECT_GT(Stats().sealed_pages, 0);
  EXPECT_EQ(Stats().state_errors, 0);
}

TEST_P(StateTest, TruncatedAndRandomDataNeverCrash) {
  const ContextPtr first = New();
  Decode(first.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(first.get());
  const ContextPtr second = New();
  std::mt19937_64 random(11);
  for (const double share : {0.001, 0.3, 0.7, 0.999}) {
    EXPECT_EQ(llama_state_seq_set_data(second.get(), state.data(),
                                       static_cast<size_t>(share * static_cast<double>(state.size())), 0),
              0u);
  }
  for (int round = 0; round < 4; ++round) {
    std::vector<uint8_t> noisy = state;
    for (int i = 0; i < 2000; ++i)
      noisy[noisy.size() / 8 + random() % (noisy.size() * 7 / 8)] = static_cast<uint8_t>(random());
    llama_state_seq_set_data(second.get(), noisy.data(), noisy.size(), 0);
    llama_memory_seq_rm(llama_get_memory(second.get()), 0, -1, -1);
  }
  Decode(second.get(), tokens_, 40, 0);
  for (const float x : LastLogits(second.get())) ASSERT_TRUE(std::isfinite(x));
}

TEST_P(StateTest, AFullDiskIsReportedAndTheContextGoesOn) {
  const ContextPtr c = New();
  Decode(c.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(c.get());
  EXPECT_EQ(llama_state_seq_save_file(c.get(), "/dev/full", 0, tokens_, kPrompt), 0u);
  EXPECT_EQ(Save(c.get()), state);
}

TEST_P(StateTest, ThroughAFile) {
  const ContextPtr c = New();
  Decode(c.get(), tokens_, kPrompt, 0);
  const std::string path = testing::TempDir() + "kvrazor_state_" + std::to_string(getpid());
  const size_t bytes = llama_state_seq_save_file(c.get(), path.c_str(), 0, tokens_, kPrompt);
  ASSERT_GT(bytes, 0u);
  const std::vector<float> want = Continue(c.get(), tokens_);
  std::vector<llama_token> read(kPrompt);
  size_t num_read = 0;
  const ContextPtr other = New();
  ASSERT_EQ(llama_state_seq_load_file(other.get(), path.c_str(), 0, read.data(), read.size(), &num_read), bytes);
  EXPECT_EQ(num_read, static_cast<size_t>(kPrompt));
  EXPECT_EQ(Continue(other.get(), tokens_), want);
  std::filesystem::remove(path);
}

TEST_P(StateTest, StatesOfRowsCanBeReadByStockPrograms) {
  setenv("KVRAZOR_STATE", "rows", 1);
  const ContextPtr first = New();
  unsetenv("KVRAZOR_STATE");
  Decode(first.get(), tokens_, kPrompt, 0);
  const std::vector<uint8_t> state = Save(first.get());
  const double want = Loss(first.get(), tokens_ + kPrompt, 65, kPrompt);
  const ContextPtr stock = New(1, false, "off");
  ASSERT_EQ(llama_state_seq_set_data(stock.get(), state.data(), state.size(), 0), state.size());
  EXPECT_NEAR(Loss(stock.get(), tokens_ + kPrompt, 65, kPrompt), want, 0.03);
}

// Outlier tokens and the state of their pools travel with the pages: what is sealed later is as if the text had never stopped.
TEST(OutlierTokensTest, AreCountedAndRestored) {
  if (!Host::Get()) GTEST_SKIP() << Host::SkipReason();
  const llama_token* tokens = Host::Get()->text().data();
  kvrazor_ggml_reset_counters();
  ContextOptions options;
  const int64_t layers = Host::Get()->num_layers(), untraced = std::min<int64_t>(2, layers - 1);
  options.recipe = "ott:exact=3,exact-extra=5,sinks=2,exact-from=" + std::to_string(untraced);
  const ContextPtr first = Host::Get()->NewContext(options);
  Decode(first.get(), tokens, kPrompt, 0);
  const kvrazor_ggml_stats s = Stats();
  const int64_t sides = 2 * layers, tracing = 2 * (layers - untraced);
  const int64_t row = s.f16_equivalent_bytes / (sides * llama_n_ctx(first.get())), row_values = row / 2;
  EXPECT_GE(s.exact_bytes, sides * 2 * row + tracing * 3 * row);
  EXPECT_LE(s.exact_bytes, sides * 2 * row + tracing * 8 * row);
  EXPECT_EQ(s.exact_bytes % row, 0);
  const int64_t page_bytes = 128 * row_values * 3 / 8;  // 3 bits: codes and parameters
  EXPECT_DOUBLE_EQ(s.bits_per_value, 8.0 *
                                         static_cast<double>(sides * 3 * page_bytes + s.exact_bytes - sides * 2 * row) /
                                         static_cast<double>(sides * 3 * 128 * row_values))
      << "outlier tokens are counted, sinks are not";
  EXPECT_EQ(s.total_bytes, s.packed_bytes + s.staging_bytes + s.exact_bytes + s.table_bytes + s.other_bytes);
  const std::vector<uint8_t> state = Save(first.get());
  const std::vector<float> want = Continue(first.get(), tokens);

  const ContextPtr second = Host::Get()->NewContext(options);
  ASSERT_EQ(llama_state_seq_set_data(second.get(), state.data(), state.size(), 0), state.size());
  EXPECT_EQ(Save(second.get()), state);
  EXPECT_EQ(Continue(second.get(), tokens), want);
  EXPECT_EQ(Save(second.get()), Save(first.get()));
  EXPECT_EQ(Stats().state_errors, 0);
}

INSTANTIATE_TEST_SUITE_P(Recipes, StateTest, testing::Values("oscar", "razor-2"),
                         [](const auto& info) { return std::string(info.index == 0 ? "Oscar" : "Razor2"); });

}  // namespace
}  // namespace kvrazor::ggml_test
