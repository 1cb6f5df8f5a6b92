// Several contexts at work at the same time, each on its own thread with threads of its own, while others ask for statistics:
// what ThreadSanitizer is to see.
#include <gtest/gtest.h>

#include <atomic>
#include <cmath>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "tests/integrations/ggml/host.h"
#include "tests/integrations/ggml/tiny_model.h"

namespace kvrazor::ggml_test {
namespace {

constexpr int kContexts = 3, kPrompt = 600, kSingle = 8;

std::vector<llama_token> Text(uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<llama_token> text(kPrompt + kSingle);
  for (llama_token& token : text) token = static_cast<llama_token>(3 + random() % 256);
  return text;
}

/// Reads a text, rewrites a part of it, saves and restores; the logits at the end.
std::vector<float> Work(llama_context* c, uint32_t seed) {
  const std::vector<llama_token> text = Text(seed);
  Decode(c, text.data(), kPrompt, 0);
  llama_memory_seq_rm(llama_get_memory(c), 0, 300, -1);
  Decode(c, text.data() + 300, kPrompt - 300, 300);
  std::vector<uint8_t> state(llama_state_seq_get_size(c, 0));
  llama_state_seq_get_data(c, state.data(), state.size(), 0);
  llama_memory_clear(llama_get_memory(c), true);
  llama_state_seq_set_data(c, state.data(), state.size(), 0);
  for (int i = 0; i < kSingle; ++i) Decode(c, text.data() + kPrompt + i, 1, kPrompt + i);
  const float* logits = llama_get_logits_ith(c, -1);
  return {logits, logits + llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(c)))};
}

TEST(Threads, ContextsAtTheSameTimeComputeWhatEachComputesAlone) {
  const TinyModelFolder folder;
  llama_backend_init();
  char error[512];
  ASSERT_TRUE(kvrazor_ggml_attach(error, sizeof(error))) << error;
  llama_model* model = llama_model_load_from_file(folder.Path("llama").c_str(), llama_model_default_params());
  ASSERT_TRUE(model);
  ContextOptions options;
  options.recipe = "razor-2";
  options.num_threads = 2;

  std::vector<std::vector<float>> want, got(kContexts);
  for (uint32_t i = 0; i < kContexts; ++i) want.push_back(Work(NewContext(model, options).get(), i));

  std::atomic<bool> done = false;
  std::atomic<int64_t> asked = 0;
  std::thread observer([&] {
    std::vector<char> json(1 << 16);
    while (!done) {
      const kvrazor_ggml_stats stats = Stats();
      EXPECT_GE(stats.total_bytes, stats.packed_bytes);
      kvrazor_ggml_explain(json.data(), json.size());
      ++asked;
      std::this_thread::yield();
    }
  });
  std::vector<std::thread> workers;
  for (uint32_t i = 0; i < kContexts; ++i) {
    workers.emplace_back([&, i] { got[i] = Work(NewContext(model, options).get(), i); });
  }
  for (std::thread& worker : workers) worker.join();
  done = true;
  observer.join();
  EXPECT_EQ(got, want);
  EXPECT_GT(asked, 0);
  EXPECT_EQ(Stats().num_layers, 0);  // all contexts are gone
  llama_model_free(model);
}

}  // namespace
}  // namespace kvrazor::ggml_test
