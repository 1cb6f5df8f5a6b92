// kvrazor run: writes an answer, or holds a conversation, with the packed cache.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <iostream>
#include <memory>
#include <random>

#include "apps/commands.h"
#include "apps/failures.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress.h"
#include "apps/read_text.h"
#include "apps/text_table.h"
#include "apps/worker.h"
#include "eval/chat_format.h"
#include "eval/model.h"

namespace kvrazor::apps {
namespace {

constexpr int64_t kDefaultMaxContext = 8192;

constexpr char kDescription[] =
    "Write an answer, or hold a conversation.\n"
    "Writes an answer to a prompt, token by token, with the KV cache kept as the recipe says. Without -p and -f it "
    "reads a conversation from "
    "stdin, one message a line, until end of file. The model's chat template is applied unless --raw is given. What "
    "the cache took is printed "
    "to stderr at the end.";
constexpr char kExamples[] =
    "EXAMPLES\n"
    "  kvrazor run -m model.gguf -p 'Why is the sky blue?'\n"
    "  kvrazor run -m model.gguf -f report.txt -p 'Summarize the text above.' --temp 0\n"
    "  kvrazor run -m model.gguf                                conversation; Ctrl-D ends it\n"
    "  kvrazor run -m model.gguf --recipe oscar --require --raw -p 'Once upon a time' -n 200\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed, for example a prompt longer than the context; 2 wrong usage; 3 --require and a layer stays in "
    "16 bits;\n"
    "  130 interrupted.";

struct Options {
  std::string model, prompt, file, recipe = "razor-2", system;
  int64_t context = 0, new_tokens = 512;
  double temperature = 0.8, top_p = 0.95, min_p = 0.05;
  int top_k = 40, threads = 0;
  int64_t seed = -1;
  bool require = false, raw = false, json = false, quiet = false, verbose = false;
};

struct SamplerDeleter {
  void operator()(llama_sampler* sampler) const { llama_sampler_free(sampler); }
};
using SamplerPtr = std::unique_ptr<llama_sampler, SamplerDeleter>;

SamplerPtr MakeSampler(const Options& options) {
  SamplerPtr chain(llama_sampler_chain_init(llama_sampler_chain_default_params()));
  if (options.temperature <= 0) {
    llama_sampler_chain_add(chain.get(), llama_sampler_init_greedy());
    return chain;
  }
  llama_sampler_chain_add(chain.get(), llama_sampler_init_top_k(options.top_k));
  llama_sampler_chain_add(chain.get(), llama_sampler_init_top_p(static_cast<float>(options.top_p), 1));
  llama_sampler_chain_add(chain.get(), llama_sampler_init_min_p(static_cast<float>(options.min_p), 1));
  llama_sampler_chain_add(chain.get(), llama_sampler_init_temp(static_cast<float>(options.temperature)));
  const uint32_t seed = options.seed < 0 ? std::random_device{}() : static_cast<uint32_t>(options.seed);
  llama_sampler_chain_add(chain.get(), llama_sampler_init_dist(seed));
  return chain;
}

double SecondsNow() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

struct Turn {
  std::string text;
  int64_t read_tokens = 0, written_tokens = 0;
  double read_seconds = 0, write_seconds = 0;
  const char* ended_by = "model";  ///< "model", "length" or "context"
};

// A model, its context and what is in the cache.
class Session {
 public:
  Session(const Options& options, const eval::CacheChoice& cache)
      : options_(options),
        cache_(cache),
        model_(eval::LoadModel(options.model)),
        format_(model_.get()),
        sampler_(MakeSampler(options)) {
    const int64_t trained = llama_model_n_ctx_train(model_.get());
    context_tokens_ = options.context > 0 ? options.context
                      : trained > 0       ? std::min(trained, kDefaultMaxContext)
                                          : kDefaultMaxContext;
    context_ = eval::MakeContext(model_.get(), cache_,
                                 {.context = context_tokens_, .threads = options.threads, .require = options.require});
  }

  std::vector<llama_token> ChatTokens(const std::vector<eval::ChatMessage>& messages) const {
    return eval::Tokenize(model_.get(), format_.Prompt(messages), /*add_first=*/!format_.has_template(),
                          /*special=*/true);
  }
  std::vector<llama_token> RawTokens(const std::string& text) const {
    return eval::Tokenize(model_.get(), text, /*add_first=*/true, /*special=*/true);
  }

  // Reads what of the prompt is not in the cache yet and writes the continuation.
  Turn Continue(const std::vector<llama_token>& prompt, Progress& progress) {
    CheckLength(std::ssize(prompt));
    const int64_t kept = KeepCommonStart(prompt);
    Turn turn;
    turn.read_tokens = std::ssize(prompt) - kept;
    const double start = SecondsNow();
    eval::Feed(context_.get(), std::span(prompt).subspan(static_cast<size_t>(kept)), kept, [&](int64_t done) {
      if (turn.read_tokens > kDefaultBatchShown) progress.Update("reading", done, turn.read_tokens);
      ThrowIfInterrupted();
    });
    llama_synchronize(context_.get());
    turn.read_seconds = SecondsNow() - start;
    progress.Done();
    held_ = prompt;
    Write(turn);
    return turn;
  }

  eval::KvUsage Kv() const { return eval::MeasureKv(context_.get(), cache_); }
  int64_t held_tokens() const { return std::ssize(held_); }
  int64_t context_tokens() const { return context_tokens_; }

 private:
  static constexpr int64_t kDefaultBatchShown = 512;  // shorter prompts are read before a bar helps

  void CheckLength(int64_t prompt_tokens) const {
    if (prompt_tokens == 0) throw UsageError("the prompt is empty. Give one with -p or -f.");
    if (prompt_tokens < context_tokens_) return;
    const int64_t trained = llama_model_n_ctx_train(model_.get());
    const int64_t needed = prompt_tokens + std::min<int64_t>(options_.new_tokens, 256);
    const std::string advice =
        needed <= trained ? fmt::format("Give -c {} or more, or a shorter prompt.", needed)
                          : fmt::format("The model was trained for {} tokens: give a shorter prompt.", trained);
    throw Error(
        fmt::format("the prompt has {} tokens, but the context holds {} and at least one must be left to write. {}",
                    prompt_tokens, context_tokens_, advice));
  }

  // How many tokens of the prompt are in the cache already; the others are removed from it. At least one token is left to read.
  int64_t KeepCommonStart(const std::vector<llama_token>& prompt) {
    int64_t common = std::mismatch(held_.begin(), held_.end(), prompt.begin(), prompt.end()).first - held_.begin();
    common = std::min<int64_t>(common, std::ssize(prompt) - 1);
    const llama_memory_t memory = llama_get_memory(context_.get());
    if (common < std::ssize(held_) && !llama_memory_seq_rm(memory, 0, static_cast<llama_pos>(common), -1)) {
      llama_memory_clear(memory, /*data=*/true);  // some caches (recurrent states) cannot go back
      common = 0;
    }
    return common;
  }

  void Write(Turn& turn) {
    const llama_vocab* vocab = llama_model_get_vocab(model_.get());
    const double start = SecondsNow();
    while (true) {
      const llama_token token = llama_sampler_sample(sampler_.get(), context_.get(), -1);
      if (llama_vocab_is_eog(vocab, token)) break;
      const std::string piece = eval::Piece(model_.get(), token);
      turn.text += piece;
      ++turn.written_tokens;
      if (!options_.json) {
        std::fwrite(piece.data(), 1, piece.size(), stdout);
        if (std::fflush(stdout) != 0)
          throw Error("writing to the standard output failed. Is the disk full, or the reader gone?");
      }
      if (WasInterrupted()) break;
      if (turn.written_tokens >= options_.new_tokens || std::ssize(held_) + 1 >= context_tokens_) {
        turn.ended_by = turn.written_tokens >= options_.new_tokens ? "length" : "context";
        break;
      }
      eval::Feed(context_.get(), {&token, 1}, std::ssize(held_));
      held_.push_back(token);
    }
    turn.write_seconds = SecondsNow() - start;
  }

  const Options& options_;
  const eval::CacheChoice cache_;
  eval::ModelPtr model_;
  eval::ChatFormat format_;
  SamplerPtr sampler_;
  eval::ContextPtr context_;
  int64_t context_tokens_ = 0;
  std::vector<llama_token> held_;  ///< tokens in the cache
};

double Rate(int64_t tokens, double seconds) { return seconds > 0 ? static_cast<double>(tokens) / seconds : 0; }

Json Statistics(const Session& session, const Options& options, const Turn& total) {
  const eval::KvUsage kv = session.Kv();
  return {{"recipe", options.recipe},
          {"context", session.context_tokens()},
          {"tokens_held", session.held_tokens()},
          {"kv_bytes", kv.bytes},
          {"kv_bytes_by_kind",
           {{"sealed", kv.sealed_bytes},
            {"staging", kv.staging_bytes},
            {"sinks", kv.sink_bytes},
            {"tables", kv.table_bytes},
            {"unpacked", kv.unpacked_bytes}}},
          {"kv_f16_bytes", kv.f16_bytes},
          {"layers", kv.num_layers},
          {"f16_layers", kv.f16_layers},
          {"generic_nodes", kv.generic_nodes},
          {"read_tokens", total.read_tokens},
          {"read_tps", Rate(total.read_tokens, total.read_seconds)},
          {"written_tokens", total.written_tokens},
          {"write_tps", Rate(total.written_tokens, total.write_seconds)},
          {"ended_by", total.ended_by}};
}

void PrintStatistics(const Json& s) {
  const double bytes = s.at("kv_bytes"), f16 = s.at("kv_f16_bytes");
  fmt::print(
      stderr,
      "\nread {} tokens at {:.0f}/s, wrote {} at {:.1f}/s; KV cache '{}': {} with {} of {} tokens ({} in 16 bits{})\n",
      s.at("read_tokens").get<int64_t>(), s.at("read_tps").get<double>(), s.at("written_tokens").get<int64_t>(),
      s.at("write_tps").get<double>(), s.at("recipe").get<std::string>(), Bytes(bytes),
      s.at("tokens_held").get<int64_t>(), s.at("context").get<int64_t>(), Bytes(f16),
      s.at("f16_layers") == 0 ? ""
                              : fmt::format("; {} of {} layers stayed there", s.at("f16_layers").get<int64_t>(),
                                            s.at("layers").get<int64_t>()));
  if (s.at("ended_by") == "context")
    fmt::print(stderr, "stopped: the context of {} tokens is full; a longer one is -c\n",
               s.at("context").get<int64_t>());
}

void AddUp(Turn& total, const Turn& turn) {
  total.read_tokens += turn.read_tokens;
  total.written_tokens += turn.written_tokens;
  total.read_seconds += turn.read_seconds;
  total.write_seconds += turn.write_seconds;
  total.ended_by = turn.ended_by;
}

Turn Converse(Session& session, const Options& options, Progress& progress) {
  const bool terminal = isatty(STDIN_FILENO) && isatty(STDERR_FILENO);
  std::vector<eval::ChatMessage> messages;
  if (!options.system.empty()) messages.push_back({"system", options.system});
  Turn total;
  for (std::string line; !WasInterrupted();) {
    if (terminal) std::fputs("> ", stderr);
    if (!std::getline(std::cin, line)) break;
    if (line.empty()) continue;
    messages.push_back({"user", line});
    const Turn turn = session.Continue(session.ChatTokens(messages), progress);
    AddUp(total, turn);
    messages.push_back({"assistant", turn.text});
    std::fputs("\n", stdout);
    std::fflush(stdout);
  }
  return total;
}

// An assertion of llama.cpp ends the program; say so in this program's words instead of a stack trace.
void OnLlamaAbort(const char* message) {
  fmt::print(stderr, "kvrazor: llama.cpp stopped: {}. The model may be damaged or not suit this context.\n", message);
  _exit(kExitFailed);
}

void Run(Options options, Invocation& invocation) {
  if (options.threads == 0) options.threads = NumProcessors();
  const bool is_chat = options.prompt.empty() && options.file.empty();
  if (options.json && is_chat) throw UsageError("--json needs a prompt: give -p or -f.");
  if (options.raw && !options.system.empty())
    throw UsageError("--raw and --system exclude each other: --system is a part of the chat template.");
  const eval::CacheChoice cache = eval::ParseCacheChoice(options.recipe);
  if (options.require && !cache.packed)
    throw RequirementError("--require asks for a packed cache, but '" + cache.name +
                           "' is llama.cpp's own. Name a recipe (kvrazor methods).");
  std::string prompt = options.prompt;
  if (!options.file.empty()) prompt = ReadTextFile(options.file) + (prompt.empty() ? "" : "\n\n" + prompt);
  CatchInterrupts();
  eval::CaptureLogs(options.verbose);
  ggml_set_abort_callback(OnLlamaAbort);

  Progress progress(options.quiet);
  Session session(options, cache);
  Turn total;
  if (is_chat) {
    total = Converse(session, options, progress);
  } else {
    std::vector<eval::ChatMessage> messages;
    if (!options.system.empty()) messages.push_back({"system", options.system});
    messages.push_back({"user", prompt});
    total = session.Continue(options.raw ? session.RawTokens(prompt) : session.ChatTokens(messages), progress);
  }
  Json statistics = Statistics(session, options, total);
  if (options.json) {
    ThrowIfInterrupted();
    statistics["text"] = total.text;
    fmt::print("{}\n", statistics.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    if (!is_chat) std::fputs("\n", stdout);
    std::fflush(stdout);
    if (!options.quiet) PrintStatistics(statistics);
  }
  if (WasInterrupted()) invocation.status = kExitInterrupted;
}

}  // namespace

void AddRun(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("run", kDescription);
  command->footer(kExamples);
  command->add_option("-m,--model", options->model, "Model, a .gguf file")->required();
  command->add_option("-p,--prompt", options->prompt, "Prompt; with -f it follows the file's text");
  command->add_option("-f,--file", options->file, "Read the prompt from a file, UTF-8; - is stdin");
  command->add_option("--system", options->system, "System message of the conversation");
  command
      ->add_option("--recipe", options->recipe,
                   "How the KV cache is kept: a recipe (kvrazor methods) or a type of llama.cpp (f16, q8_0 ...)")
      ->capture_default_str();
  command->add_flag("--require", options->require, "Fail if any layer stays in 16 bits")->envname("KVRAZOR_REQUIRE");
  command->add_option("-n,--new-tokens", options->new_tokens, "Write at most so many tokens a turn")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->capture_default_str();
  command
      ->add_option("-c,--context", options->context,
                   "Tokens that the context holds (default: what the model was trained for, at most 8192)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31));
  command->add_option("--temp", options->temperature, "Temperature; 0: always the most likely token")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command->add_option("--top-k", options->top_k, "Sample from the k most likely tokens; 0: all")
      ->check(CLI::Range(0, 1 << 30))
      ->capture_default_str();
  command->add_option("--top-p", options->top_p, "Sample from the fewest tokens of this total probability")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--min-p", options->min_p, "Sample from tokens at least this likely, relative to the likeliest")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--seed", options->seed, "Seed of the sampling (default: random)")
      ->check(CLI::Range(int64_t{0}, int64_t{0xFFFFFFFE}));
  command->add_flag("--raw", options->raw, "Continue the prompt as it is, without the chat template");
  command->add_option("-t,--threads", options->threads, "Threads; by default all processors")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--json", options->json, "Print text and statistics as JSON at the end");
  command->add_flag("-q,--quiet", options->quiet, "No progress and no statistics");
  command->add_flag("-v,--verbose", options->verbose, "Show llama.cpp's messages");
  command->callback([options, &invocation] { Run(*options, invocation); });
}

}  // namespace kvrazor::apps
