// Sequences that share a cache do not notice each other, and taking tokens back leaves no trace.
#include <gtest/gtest.h>

#include <vector>

#include "tests/integrations/ggml/host.h"

namespace kvrazor::ggml_test {
namespace {

class SequencesTest : public testing::Test {
 protected:
  void SetUp() override {
    if (!Host::Get()) GTEST_SKIP() << Host::SkipReason();
    tokens_ = Host::Get()->text().data();
  }
  const llama_token* tokens_ = nullptr;
};

/// Continues greedily; draft wrong tokens are decoded and taken back after each right one.
std::vector<llama_token> Generate(const char* recipe, const llama_token* prompt, int prompt_tokens, int count,
                                  int draft) {
  ContextOptions options;
  options.recipe = recipe;
  const ContextPtr c = Host::Get()->NewContext(options);
  Decode(c.get(), prompt, prompt_tokens, 0);
  std::vector<float> logits = LastLogits(c.get());
  std::vector<llama_token> text;
  for (int position = prompt_tokens; position < prompt_tokens + count; ++position) {
    text.push_back(Best(logits.data(), Host::Get()->vocabulary()));
    Decode(c.get(), &text.back(), 1, position);
    logits = LastLogits(c.get());
    if (draft == 0) continue;
    const std::vector<llama_token> wrong(static_cast<size_t>(draft), prompt[3]);
    Decode(c.get(), wrong.data(), draft, position + 1);
    llama_memory_seq_rm(llama_get_memory(c.get()), 0, position + 1, -1);
  }
  return text;
}

TEST_F(SequencesTest, GreedyTextIsTheSameWithAndWithoutRollback) {
  const std::vector<llama_token> want = Generate("f16", tokens_, 370, 30, 0);
  EXPECT_EQ(Generate("f16", tokens_, 370, 30, 7), want);  // crosses slot 384, a page edge
}

TEST_F(SequencesTest, TwoInterleavedSequencesEqualEachAlone) {
  struct Last {
    std::vector<float> a, b;
  };
  // The same batches in the same order for each sequence; `which`: bit 0 sequence 0, bit 1 sequence 1.
  const auto run = [&](int which) {
    ContextOptions options;
    options.recipe = "oscar";
    options.num_sequences = 2;
    const ContextPtr c = Host::Get()->NewContext(options);
    Last last;
    for (int first = 0; first < 480; first += 120) {
      if (which & 1) Decode(c.get(), tokens_ + first, 120, first, 0);
      if (which & 2) Decode(c.get(), tokens_ + 600 + first, 120, first, 1);
    }
    for (int i = 0; i < 6; ++i) {
      if (which & 1) {
        Decode(c.get(), tokens_ + 480 + i, 1, 480 + i, 0);
        last.a = LastLogits(c.get());
      }
      if (which & 2) {
        Decode(c.get(), tokens_ + 1080 + i, 1, 480 + i, 1);
        last.b = LastLogits(c.get());
      }
    }
    return last;
  };
  const Last both = run(3);
  EXPECT_EQ(run(1).a, both.a);
  EXPECT_EQ(run(2).b, both.b);
}

TEST_F(SequencesTest, ClearingGivesMemoryBackAndForgetsEverything) {
  ContextOptions options;
  options.recipe = "razor-2";
  const ContextPtr c = Host::Get()->NewContext(options);
  const auto read = [&] {
    Decode(c.get(), tokens_, 520, 0);
    return LastLogits(c.get());
  };
  const std::vector<float> first = read();
  EXPECT_GT(Stats().packed_bytes, 0);
  llama_memory_clear(llama_get_memory(c.get()), true);
  EXPECT_EQ(Stats().packed_bytes, 0);
  EXPECT_EQ(Stats().staging_bytes, 0);
  EXPECT_EQ(Stats().exact_bytes, 0);
  EXPECT_EQ(read(), first);
}

TEST_F(SequencesTest, PagesRewrittenTokenByTokenAreThawedOnce) {
  ContextOptions options;
  options.recipe = "oscar";
  const ContextPtr c = Host::Get()->NewContext(options);
  Decode(c.get(), tokens_, 520, 0);
  kvrazor_ggml_reset_counters();
  llama_memory_seq_rm(llama_get_memory(c.get()), 0, 150, -1);
  for (int position = 150; position < 165; ++position) Decode(c.get(), tokens_ + position, 1, position);
  EXPECT_EQ(Stats().thawed_pages, 2 * Host::Get()->num_layers());  // page 1, keys and values
  EXPECT_EQ(Stats().generic_nodes, 0);
}

}  // namespace
}  // namespace kvrazor::ggml_test
