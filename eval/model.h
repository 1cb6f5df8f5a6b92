// A model and its contexts through llama.h, owned and with errors as exceptions.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "eval/cache_choice.h"
#include "llama.h"

namespace kvrazor::eval {

struct ModelDeleter {
  void operator()(llama_model* model) const { llama_model_free(model); }
};
struct ContextDeleter {
  void operator()(llama_context* context) const { llama_free(context); }
};
using ModelPtr = std::unique_ptr<llama_model, ModelDeleter>;
using ContextPtr = std::unique_ptr<llama_context, ContextDeleter>;

/// llama.cpp's and ggml's messages: kept, not printed. With `verbose` all of them go to stderr, too.
void CaptureLogs(bool verbose);
/// The newest warnings and errors, oldest first, at most a few lines; empty if there were none.
std::string RecentProblems();

/// Checks the header of the file (and of its parts) and loads it. Throws Error.
ModelPtr LoadModel(const std::string& path);

struct ContextOptions {
  int64_t context = 0;  ///< tokens
  int batch = 512;      ///< tokens computed at once
  int outputs = 1;      ///< most positions of a batch whose logits are asked for
  int threads = 1;
  bool require = false;                                ///< no layer may stay in 16 bits
  ggml_backend_sched_eval_callback on_node = nullptr;  ///< sees every node of the graph (slow)
  void* on_node_data = nullptr;
};
/// Makes a context with flash attention and the cache. Throws NotPackedError if `require` is what prevents it, or Error; both
/// with llama.cpp's messages.
ContextPtr MakeContext(llama_model* model, const CacheChoice& cache, const ContextOptions& options);

/// What the context's KV cache takes.
struct KvUsage {
  int64_t bytes = 0;               ///< the most there ever was of everything: windows, staging and tables too
  int64_t sealed_bytes = 0;        ///< now: sealed pages
  int64_t staging_bytes = 0;       ///< 16-bit rows: windows, pages being filled
  int64_t sink_bytes = 0;          ///< first tokens in 16 bits
  int64_t table_bytes = 0;         ///< page tables, second moments of the queries
  int64_t unpacked_bytes = 0;      ///< cache tensors that llama.cpp keeps itself
  double page_bits_per_value = 0;  ///< of sealed pages alone (packed), of the whole cache (llama.cpp's own)
  int64_t f16_bytes = 0;           ///< what 16 bits would take; 0 if not known
  int64_t num_layers = 0;          ///< 0 if not known
  int64_t f16_layers = 0;          ///< layers that kvrazor left in 16 bits
  int64_t generic_nodes = 0;       ///< graph nodes that needed a 16-bit view of a packed tensor
};
KvUsage MeasureKv(llama_context* context, const CacheChoice& cache);

/// Tokens of a text; `special`: control tokens in the text are understood, and the model's first token is added.
std::vector<llama_token> Tokenize(const llama_model* model, std::string_view text, bool add_first, bool special);
/// UTF-8 bytes of a token, possibly a part of a character.
std::string Piece(const llama_model* model, llama_token token);

/// Computes tokens from position `at` on, in batches; logits of the last one can be read afterwards. Throws Error.
/// `progress` is called with the tokens done after each batch.
void Feed(llama_context* context, std::span<const llama_token> tokens, int64_t at,
          const std::function<void(int64_t)>& progress = {});

/// Logits of the last token fed.
std::span<const float> LastLogits(llama_context* context);

}  // namespace kvrazor::eval
