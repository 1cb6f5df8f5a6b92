// SmolLM2 through llama.h, as any program uses it: contexts, decoding, losses.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kvrazor/ggml.h"
#include "llama.h"

namespace kvrazor::ggml_test {

struct ContextOptions {
  std::string recipe = "f16";  ///< "off": llama.cpp's own cache
  bool require = false;
  int num_tokens = 1024;
  int num_sequences = 1;
  bool unified = false;
  llama_flash_attn_type flash_attention = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  int num_threads = 1;
  int chunk = 256;  ///< tokens computed at once: several pages a prompt, one batch a score
  bool embeddings = false;
  bool full_window =
      true;  ///< sliding windows: room for the whole context, llama.h's default; its programs choose false
  ggml_type key_type = GGML_TYPE_F16;
  ggml_backend_sched_eval_callback callback = nullptr;
};

struct FreeContext {
  void operator()(llama_context* c) const { llama_free(c); }
};
using ContextPtr = std::unique_ptr<llama_context, FreeContext>;

/// nullptr if llama.cpp refuses.
ContextPtr NewContext(llama_model* model, const ContextOptions& options);

/// Loads the model and attaches the plug-in, once for all tests of a program.
class Host {
 public:
  /// nullptr when the model file is missing; the test should be skipped with SkipReason().
  static Host* Get();
  static std::string SkipReason();

  ContextPtr NewContext(const ContextOptions& options) const { return ggml_test::NewContext(model_, options); }
  /// The licence text of the project.
  const std::vector<llama_token>& text() const { return text_; }
  int vocabulary() const { return vocabulary_; }
  int num_layers() const { return llama_model_n_layer(model_); }

 private:
  Host();
  llama_model* model_ = nullptr;
  int vocabulary_ = 0;
  std::vector<llama_token> text_;
};

/// Decodes text[first, first + count) at positions `position`... of a sequence.
void Decode(llama_context* context, const llama_token* tokens, int count, int position, int sequence = 0,
            bool all_logits = false);

/// Mean loss in nats of tokens[1 .. count-1], decoded as one batch.
double Loss(llama_context* context, const llama_token* tokens, int count, int position, int sequence = 0);

/// -log softmax(logits)[token].
double TokenLoss(const float* logits, llama_token token, int vocabulary);

/// Logits of the last decoded token.
std::vector<float> LastLogits(llama_context* context);

llama_token Best(const float* logits, int vocabulary);

kvrazor_ggml_stats Stats();

}  // namespace kvrazor::ggml_test
