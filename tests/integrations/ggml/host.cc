#include "tests/integrations/ggml/host.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <sstream>

namespace kvrazor::ggml_test {
namespace {

std::string ModelPath() {
  const char* path = std::getenv("KVRAZOR_TEST_MODEL");
  return path ? path : KVRAZOR_TEST_MODEL_PATH;
}

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

}  // namespace

std::string Host::SkipReason() {
  return "no model in " + ModelPath() + " (tools/bootstrap puts it there; KVRAZOR_TEST_MODEL names another)";
}

Host* Host::Get() {
  if (!std::filesystem::exists(ModelPath())) return nullptr;
  static Host host;
  return &host;
}

Host::Host() {
  llama_log_set(
      [](ggml_log_level level, const char* text, void*) {
        if (level >= GGML_LOG_LEVEL_WARN && level != GGML_LOG_LEVEL_CONT) std::fputs(text, stderr);
      },
      nullptr);
  llama_backend_init();
  char error[512];
  if (!kvrazor_ggml_attach(error, sizeof(error))) ADD_FAILURE() << error;
  model_ = llama_model_load_from_file(ModelPath().c_str(), llama_model_default_params());
  const llama_vocab* vocab = llama_model_get_vocab(model_);
  vocabulary_ = llama_vocab_n_tokens(vocab);
  const std::string text = ReadFile(KVRAZOR_TEST_TEXT_PATH);
  text_.resize(4 * text.size() + 8);  // a space may be three bytes, each a token
  const int count = llama_tokenize(vocab, text.c_str(), static_cast<int>(text.size()), text_.data(),
                                   static_cast<int>(text_.size()), true, false);
  text_.resize(static_cast<size_t>(std::max(count, 0)));
  if (count < 1800) ADD_FAILURE() << "the text in " << KVRAZOR_TEST_TEXT_PATH << " has only " << count << " tokens";
}

ContextPtr NewContext(llama_model* model, const ContextOptions& options) {
  char error[512];
  if (!kvrazor_ggml_set_recipe(options.recipe.c_str(), options.require, error, sizeof(error))) ADD_FAILURE() << error;
  llama_context_params p = llama_context_default_params();
  p.n_ctx = static_cast<uint32_t>(options.num_tokens * (options.unified ? 1 : options.num_sequences));
  p.n_batch = p.n_ubatch = static_cast<uint32_t>(options.chunk);
  p.n_seq_max = static_cast<uint32_t>(options.num_sequences);
  p.kv_unified = options.unified;
  p.flash_attn_type = options.flash_attention;
  p.type_k = options.key_type;
  // One thread: two that wait for each other at every node come to a standstill on a busy machine.
  p.n_threads = p.n_threads_batch = options.num_threads;
  p.no_perf = true;
  p.cb_eval = options.callback;
  p.embeddings = options.embeddings;
  p.swa_full = options.full_window;
  return ContextPtr(llama_init_from_model(model, p));
}

void Decode(llama_context* context, const llama_token* tokens, int count, int position, int sequence, bool all_logits) {
  const int chunk = static_cast<int>(llama_n_batch(context));
  for (int first = 0; first < count; first += chunk) {
    const int n = std::min(chunk, count - first);
    llama_batch batch = llama_batch_init(n, 0, 1);
    batch.n_tokens = n;
    for (int i = 0; i < n; ++i) {
      batch.token[i] = tokens[first + i];
      batch.pos[i] = position + first + i;
      batch.n_seq_id[i] = 1;
      batch.seq_id[i][0] = sequence;
      batch.logits[i] = all_logits || first + i == count - 1;
    }
    EXPECT_EQ(llama_decode(context, batch), 0);
    llama_batch_free(batch);
  }
}

double TokenLoss(const float* logits, llama_token token, int vocabulary) {
  const double top = *std::max_element(logits, logits + vocabulary);
  double sum = 0;
  for (int i = 0; i < vocabulary; ++i) sum += std::exp(logits[i] - top);
  return std::log(sum) + top - logits[token];
}

double Loss(llama_context* context, const llama_token* tokens, int count, int position, int sequence) {
  Decode(context, tokens, count, position, sequence, true);
  double sum = 0;
  for (int i = 0; i + 1 < count; ++i)
    sum += TokenLoss(llama_get_logits_ith(context, i), tokens[i + 1], Host::Get()->vocabulary());
  return sum / (count - 1);
}

std::vector<float> LastLogits(llama_context* context) {
  const float* logits = llama_get_logits_ith(context, -1);
  return std::vector<float>(logits, logits + Host::Get()->vocabulary());
}

llama_token Best(const float* logits, int vocabulary) {
  return static_cast<llama_token>(std::max_element(logits, logits + vocabulary) - logits);
}

kvrazor_ggml_stats Stats() {
  kvrazor_ggml_stats stats;
  kvrazor_ggml_get_stats(&stats);
  return stats;
}

}  // namespace kvrazor::ggml_test
