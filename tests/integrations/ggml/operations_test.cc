// What people do with a cache (docs/llama_cpp.md, table of operations): the loss of the next tokens stays within what
// the recipe costs.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>
#include <ostream>
#include <string>
#include <vector>

#include "tests/integrations/ggml/host.h"

namespace kvrazor::ggml_test {
namespace {

constexpr int kPrompt = 512;  // four pages, three of them sealed
constexpr int kScored = 81;   // in one batch

struct Operation {
  std::string name;
  int num_sequences = 1;
  bool unified = false;
  /// Brings the context to a prompt of kPrompt tokens of the text in some sequence and returns the loss of what
  /// follows.
  std::function<double(llama_context*, const llama_token*)> run;
  /// Loss over llama.cpp's own cache that is allowed, in nats: with `oscar` (3 bits), of the same operation.
  double allowed = 0.12;
  bool same_as_base = false;  ///< for llama.cpp's own cache the operation changes nothing
  ContextOptions options = {};
};

double ScoreAt(llama_context* c, const llama_token* t, int sequence = 0) {
  return Loss(c, t + kPrompt, kScored, kPrompt, sequence);
}

double Base(llama_context* c, const llama_token* t) {
  Decode(c, t, kPrompt, 0);
  return ScoreAt(c, t);
}

/// Drafts of 8 wrong tokens behind every right one are decoded and taken back, across a page edge.
double Speculative(llama_context* c, const llama_token* t) {
  int position = kPrompt - 12;
  Decode(c, t, position, 0);
  for (; position < kPrompt; ++position) {
    std::vector<llama_token> draft(9, t[1]);
    draft[0] = t[position];
    Decode(c, draft.data(), 9, position);
    llama_memory_seq_rm(llama_get_memory(c), 0, position + 1, -1);
  }
  return ScoreAt(c, t);
}

/// Another text was read behind the first 200 tokens; then single tokens are written into its sealed pages.
double PrefixReuse(llama_context* c, const llama_token* t) {
  Decode(c, t, 200, 0);
  Decode(c, t + 1000, 500, 200);
  llama_memory_seq_rm(llama_get_memory(c), 0, 200, -1);
  int position = 200;
  for (; position < 230; ++position) Decode(c, t + position, 1, position);
  Decode(c, t + position, kPrompt - position, position);
  // What is sealed twice loses the more or the less, as roundings fall: over few tokens that is most of what one sees.
  return Loss(c, t + kPrompt, 3 * kScored, kPrompt);
}

double StateToOtherSequence(llama_context* c, const llama_token* t) {
  Decode(c, t, kPrompt, 0);
  std::vector<uint8_t> state(llama_state_seq_get_size(c, 0));
  EXPECT_EQ(llama_state_seq_get_data(c, state.data(), state.size(), 0), state.size());
  llama_memory_clear(llama_get_memory(c), true);
  EXPECT_EQ(llama_state_seq_set_data(c, state.data(), state.size(), 1), state.size());
  return ScoreAt(c, t, 1);
}

double StateOnDevice(llama_context* c, const llama_token* t) {
  Decode(c, t, kPrompt, 0);
  const auto flags = LLAMA_STATE_SEQ_FLAGS_ON_DEVICE;
  std::vector<uint8_t> state(llama_state_seq_get_size_ext(c, 0, flags));
  llama_state_seq_get_data_ext(c, state.data(), state.size(), 0, flags);
  Decode(c, t + 5, 60, kPrompt);
  EXPECT_EQ(llama_state_seq_set_data_ext(c, state.data(), state.size(), 0, flags), state.size());
  return ScoreAt(c, t);
}

double SequenceCopy(llama_context* c, const llama_token* t) {
  Decode(c, t, kPrompt, 0);
  llama_memory_seq_cp(llama_get_memory(c), 0, 1, -1, -1);
  return ScoreAt(c, t, 1);
}

double TwoSequences(llama_context* c, const llama_token* t) {
  for (int first = 0; first < kPrompt; first += 128) {
    Decode(c, t + first, 128, first, 0);
    Decode(c, t + 700 + first, 128, first, 1);
  }
  return ScoreAt(c, t, 0);
}

/// The first tokens stay, the next are dropped, all others move to lower positions.
double ContextShift(llama_context* c, const llama_token* t) {
  Decode(c, t, kPrompt, 0);
  llama_memory_t memory = llama_get_memory(c);
  EXPECT_TRUE(llama_memory_can_shift(memory));
  llama_memory_seq_rm(memory, 0, 4, 132);
  llama_memory_seq_add(memory, 0, 132, -1, -128);
  return Loss(c, t + kPrompt, kScored, kPrompt - 128);
}

bool SeeEveryNode(ggml_tensor*, bool, void*) { return true; }

std::vector<Operation> Operations() {
  ContextOptions seen;
  seen.callback = SeeEveryNode;
  return {
      {"Base", 1, false, Base},
      {"Speculative", 1, false, Speculative},
      {"PrefixReuse", 1, false, PrefixReuse},
      {"StateToOtherSequence", 2, false, StateToOtherSequence, 0.12, true},
      {"StateOnDevice", 1, false, StateOnDevice, 0.12, true},
      {"SequenceCopyStreams", 2, false, SequenceCopy, 0.12, true},
      {"SequenceCopyUnified", 2, true, SequenceCopy, 0.12, true},
      {"TwoSequencesStreams", 2, false, TwoSequences},
      {"TwoSequencesUnified", 2, true, TwoSequences},
      {"ContextShift", 1, false, ContextShift},
      {"EvalCallback", 1, false, Base, 0.12, true, seen},
  };
}

void PrintTo(const Operation& op, std::ostream* out) { *out << op.name; }

class OperationTest : public testing::TestWithParam<Operation> {
 protected:
  double Run(const std::string& recipe) {
    const Operation& op = GetParam();
    ContextOptions options = op.options;
    options.recipe = recipe;
    options.require = recipe != "off";
    options.num_sequences = op.num_sequences;
    options.unified = op.unified;
    options.num_tokens = op.unified ? 2048 : 1024;
    const ContextPtr context = Host::Get()->NewContext(options);
    return context ? op.run(context.get(), Host::Get()->text().data()) : NAN;
  }
};

TEST_P(OperationTest, LossesStayWithinWhatTheRecipeCosts) {
  if (!Host::Get()) GTEST_SKIP() << Host::SkipReason();
  static double base = NAN;  // of llama.cpp's own cache
  const double stock = GetParam().same_as_base && !std::isnan(base) ? base : Run("off");
  if (GetParam().name == "Base") base = stock;
  // Our storage and attention without quantization: what is left is rounding. ggml sums values in f16, we do not.
  const double f16 = Run("f16");
  EXPECT_NEAR(f16, stock, 0.02) << "recipe f16";
  const double oscar = Run("oscar");
  EXPECT_LE(oscar - stock, GetParam().allowed) << "recipe oscar";
  const double razor = Run("razor-2");
  EXPECT_LE(razor - stock, GetParam().allowed) << "recipe razor-2";
  EXPECT_EQ(Stats().state_errors, 0);
  RecordProperty("loss_stock", std::to_string(stock));
  std::printf("    loss: stock %.4f  f16 %+.4f  oscar %+.4f  razor-2 %+.4f\n", stock, f16 - stock, oscar - stock,
              razor - stock);
}

INSTANTIATE_TEST_SUITE_P(All, OperationTest, testing::ValuesIn(Operations()),
                         [](const auto& info) { return info.param.name; });

}  // namespace
}  // namespace kvrazor::ggml_test
