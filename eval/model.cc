#include "eval/model.h"

#include <fmt/format.h>

#include <cstdio>
#include <deque>
#include <mutex>

#include "eval/gguf_header.h"
#include "kvrazor/error.h"
#include "kvrazor/ggml.h"
#include "llama-ext.h"

namespace kvrazor::eval {
namespace {

constexpr size_t kKeptLines = 8;

struct LogState {
  std::mutex mutex;
  std::deque<std::string> problems;
  bool verbose = false;
  bool continues_problem = false;
};

LogState& Logs() {
  static LogState state;
  return state;
}

void OnLog(ggml_log_level level, const char* text, void*) {
  LogState& logs = Logs();
  const std::lock_guard lock(logs.mutex);
  const bool problem = level == GGML_LOG_LEVEL_CONT ? logs.continues_problem : level >= GGML_LOG_LEVEL_WARN;
  if (logs.verbose) std::fputs(text, stderr);
  if (problem && level == GGML_LOG_LEVEL_CONT && !logs.problems.empty()) {
    logs.problems.back() += text;
  } else if (problem) {
    logs.problems.emplace_back(text);
    if (logs.problems.size() > kKeptLines) logs.problems.pop_front();
  }
  logs.continues_problem = problem;
}

}  // namespace

void CaptureLogs(bool verbose) {
  Logs().verbose = verbose;
  llama_log_set(OnLog, nullptr);  // ggml's messages go through it as well
}

std::string RecentProblems() {
  LogState& logs = Logs();
  const std::lock_guard lock(logs.mutex);
  std::string text;
  for (const std::string& line : logs.problems) text += "  " + line + (line.ends_with('\n') ? "" : "\n");
  return text;
}

ModelPtr LoadModel(const std::string& path) {
  const GgufHeader header = ReadGgufHeader(path);
  for (const std::string& part : GgufParts(header)) {
    if (part != path) ReadGgufHeader(part);
  }
  llama_model_params params = llama_model_default_params();
  ModelPtr model(llama_model_load_from_file(path.c_str(), params));
  if (!model)
    throw Error(
        fmt::format("llama.cpp cannot load the model '{}':\n{}The file is whole; this llama.cpp may not know its "
                    "architecture '{}'.",
                    path, RecentProblems(), header.Text("general.architecture").value_or("?")));
  return model;
}

ContextPtr MakeContext(llama_model* model, const CacheChoice& cache, const ContextOptions& options) {
  llama_context_params params = llama_context_default_params();
  params.n_ctx = static_cast<uint32_t>(options.context);
  params.n_batch = static_cast<uint32_t>(options.batch);
  params.n_ubatch = static_cast<uint32_t>(options.batch);
  params.n_outputs_max = static_cast<uint32_t>(options.outputs);
  params.n_threads = options.threads;
  params.n_threads_batch = options.threads;
  params.flash_attn_type = LLAMA_FLASH_ATTN_TYPE_ENABLED;
  params.type_k = cache.type;
  params.type_v = cache.type;
  params.no_perf = true;
  params.cb_eval = options.on_node;
  params.cb_eval_user_data = options.on_node_data;
  const CacheChoice resolved = ForLayers(cache, llama_model_n_layer(model));
  UseCache(resolved, options.require);
  ContextPtr context(llama_init_from_model(model, params));
  if (context) return context;
  const std::string problems = RecentProblems();
  if (options.require) {
    // Without the requirement it works: then that was the reason.
    UseCache(resolved, /*require=*/false);
    if (ContextPtr(llama_init_from_model(model, params)))
      throw NotPackedError(fmt::format(
          "--require: not every layer can be packed with '{}':\n{}Leave --require out to keep those layers in 16 bits, "
          "or choose another recipe (kvrazor methods).",
          cache.name, problems));
  }
  throw Error(
      fmt::format("llama.cpp cannot make a context of {} tokens with the cache '{}':\n{}Try a shorter context (-c) or "
                  "another cache.",
                  options.context, cache.name, problems));
}

KvUsage MeasureKv(llama_context* context, const CacheChoice& cache) {
  KvUsage usage;
#ifdef KVRAZOR_HAVE_GGML_PLUGIN
  if (cache.packed) {
    kvrazor_ggml_stats stats = {};
    kvrazor_ggml_get_stats(&stats);
    usage.bytes = stats.peak_bytes;
    usage.sealed_bytes = stats.packed_bytes;
    usage.staging_bytes = stats.staging_bytes;
    usage.sink_bytes = stats.exact_bytes;
    usage.table_bytes = stats.table_bytes;
    usage.unpacked_bytes = stats.other_bytes;
    usage.page_bits_per_value = stats.bits_per_value;
    usage.f16_bytes = stats.f16_equivalent_bytes;
    usage.num_layers = stats.num_layers;
    usage.f16_layers = stats.f16_layers;
    usage.generic_nodes = stats.generic_nodes;
    return usage;
  }
#endif
  for (const auto& [type, memory] : llama_get_memory_breakdown(context))
    usage.bytes += static_cast<int64_t>(memory.context);
  usage.unpacked_bytes = usage.bytes;
  usage.page_bits_per_value =
      8.0 * static_cast<double>(ggml_type_size(cache.type)) / static_cast<double>(ggml_blck_size(cache.type));
  usage.f16_bytes = static_cast<int64_t>(static_cast<double>(usage.bytes) * 16.0 / usage.page_bits_per_value);
  return usage;
}

std::vector<llama_token> Tokenize(const llama_model* model, std::string_view text, bool add_first, bool special) {
  const llama_vocab* vocab = llama_model_get_vocab(model);
  if (text.size() > size_t{1} << 30)
    throw Error(fmt::format("the text has {} bytes; at most 1 GiB can be read.", text.size()));
  std::vector<llama_token> tokens(text.size() / 2 + 16);
  const auto run = [&] {
    return llama_tokenize(vocab, text.data(), static_cast<int32_t>(text.size()), tokens.data(),
                          static_cast<int32_t>(tokens.size()), add_first, special);
  };
  int32_t count = run();
  if (count < 0 && count != INT32_MIN) {
    tokens.resize(static_cast<size_t>(-count));
    count = run();
  }
  if (count < 0)
    throw Error("llama.cpp cannot split the text into tokens. Is it UTF-8, and has the model a vocabulary?");
  tokens.resize(static_cast<size_t>(count));
  return tokens;
}

std::string Piece(const llama_model* model, llama_token token) {
  const llama_vocab* vocab = llama_model_get_vocab(model);
  std::string piece(32, '\0');
  int32_t length = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
  if (length < 0) {
    piece.resize(static_cast<size_t>(-length));
    length = llama_token_to_piece(vocab, token, piece.data(), static_cast<int32_t>(piece.size()), 0, false);
  }
  piece.resize(static_cast<size_t>(std::max(length, 0)));
  return piece;
}

void Feed(llama_context* context, std::span<const llama_token> tokens, int64_t at,
          const std::function<void(int64_t)>& progress) {
  const int64_t batch_tokens = llama_n_batch(context);
  for (int64_t done = 0; done < std::ssize(tokens);) {
    const int64_t count = std::min<int64_t>(batch_tokens, std::ssize(tokens) - done);
    // llama.h takes a pointer to non-const tokens and does not write through it. Positions follow the sequence's own.
    llama_batch batch =
        llama_batch_get_one(const_cast<llama_token*>(tokens.data() + done), static_cast<int32_t>(count));
    const int32_t status = llama_decode(context, batch);
    if (status != 0)
      throw Error(fmt::format("llama.cpp failed at tokens {} to {} of a context of {} (status {}):\n{}", at + done,
                              at + done + count - 1, llama_n_ctx(context), status, RecentProblems()));
    done += count;
    if (progress) {
      llama_synchronize(context);
      progress(done);
    }
  }
}

std::span<const float> LastLogits(llama_context* context) {
  const float* logits = llama_get_logits_ith(context, -1);
  if (!logits)
    throw Error("llama.cpp computed no logits for the last token. Is it a language model, not an embedding model?");
  const int32_t vocabulary = llama_vocab_n_tokens(llama_model_get_vocab(llama_get_model(context)));
  return {logits, static_cast<size_t>(vocabulary)};
}

}  // namespace kvrazor::eval
