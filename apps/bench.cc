// kvrazor bench: tokens/s at several depths for several caches, in one run, with ratios.
#include <fmt/format.h>

#include <algorithm>
#include <map>
#include <memory>

#include "apps/commands.h"
#include "apps/failures.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress.h"
#include "apps/text_table.h"
#include "apps/worker.h"
#include "eval/distribution.h"
#include "eval/model.h"
#include "eval/speed.h"

namespace kvrazor::apps {
namespace {

constexpr char kDescription[] =
    "Prefill and decode speed of several caches at several depths.\n"
    "Times prefill (reading a prompt, in batches of 512) and decode (writing one token at a time) with several KV "
    "caches at several depths, "
    "that is with so many tokens in the cache already. Every round measures all caches one after the other, each in a "
    "process of its own; "
    "the median over the rounds is shown, and its ratio to f16 in the same run; then the bytes of each cache at the "
    "end, "
    "the most that it ever took of everything, against 16 bits for the same context. The tokens are arbitrary: depths "
    "beyond what the model was trained for tell speed and bytes as well as any.";
constexpr char kExamples[] =
    "EXAMPLES\n"
    "  kvrazor bench -m model.gguf\n"
    "  kvrazor bench -m model.gguf --depths 512,4096,8064 --caches f16,oscar,razor-2 --rounds 5\n"
    "  kvrazor bench -m model.gguf --depths 32736 --caches oscar:k2g128,v2g64,razor-2 --rounds 1\n"
    "  kvrazor bench -m model.gguf --json | jq '.results[] | select(.depth == 8064)'\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage; 3 --require and a layer stays in 16 bits; 130 interrupted.";

struct Options {
  std::string model;
  std::string caches = "f16,q8_0,razor-2";
  std::vector<int64_t> depths = {512, 2048, 4096, 8064};
  int64_t new_tokens = 32;
  int threads = 0, rounds = 3;
  bool json = false, quiet = false, require = false, verbose = false;
};

struct Cell {
  std::vector<double> prefill, decode;
  double Prefill() const { return eval::Quantile(prefill, 0.5); }
  double Decode() const { return eval::Quantile(decode, 0.5); }
};
struct Memory {
  double bytes = 0, f16_bytes = 0;
};
struct Results {
  std::map<std::pair<std::string, int64_t>, Cell> cells;  // by cache and depth
  std::map<std::string, Memory> memory;                   // by cache
};

Results Measure(const Options& options, const std::vector<std::string>& caches) {
  Progress progress(options.quiet);
  Results results;
  for (int round = 0; round < options.rounds; ++round) {
    for (const std::string& cache : caches) {
      const std::string label = fmt::format("round {}/{}: {}", round + 1, options.rounds, cache);
      const Json measured =
          RunWorker({{"kind", "bench"},
                     {"model", options.model},
                     {"cache", cache},
                     {"depths", options.depths},
                     {"new_tokens", options.new_tokens},
                     {"threads", options.threads},
                     {"require", options.require && eval::ParseCacheChoice(cache).packed},
                     {"verbose", options.verbose}},
                    -1, [&](const std::string&, int64_t done, int64_t total) { progress.Update(label, done, total); });
      results.memory[cache] = {.bytes = measured.at("kv_bytes"), .f16_bytes = measured.at("kv_f16_bytes")};
      for (const Json& point : measured.at("points")) {
        Cell& cell = results.cells[{cache, point.at("depth")}];
        cell.prefill.push_back(point.at("prefill_tps"));
        cell.decode.push_back(point.at("decode_tps"));
      }
    }
  }
  return results;
}

void Bench(Options options, const Invocation& invocation) {
  if (options.threads == 0) options.threads = NumProcessors();
  std::sort(options.depths.begin(), options.depths.end());
  for (size_t i = 1; i < options.depths.size(); ++i) {
    if (options.depths[i] < options.depths[i - 1] + options.new_tokens)
      throw UsageError(fmt::format(
          "--depths: {} new tokens after depth {} end beyond the next depth, {}. Give depths further apart.",
          options.new_tokens, options.depths[i - 1], options.depths[i]));
  }
  const std::vector<std::string> caches = eval::SplitCacheNames(options.caches);
  CatchInterrupts();
  const Results results = Measure(options, caches);
  const bool has_f16 = std::find(caches.begin(), caches.end(), "f16") != caches.end();
  Json list = Json::array();
  TextTable table({"depth", "<cache", "prefill tok/s", "vs f16", "decode tok/s", "vs f16"});
  for (const int64_t depth : options.depths) {
    for (const std::string& cache : caches) {
      const Cell& cell = results.cells.at({cache, depth});
      Json entry = {
          {"recipe", cache}, {"depth", depth}, {"prefill_tps", cell.Prefill()}, {"decode_tps", cell.Decode()}};
      std::string prefill_ratio = "-", decode_ratio = "-";
      if (has_f16) {
        const Cell& f16 = results.cells.at({"f16", depth});
        entry["prefill_vs_f16"] = cell.Prefill() / f16.Prefill();
        entry["decode_vs_f16"] = cell.Decode() / f16.Decode();
        prefill_ratio = fmt::format("{:.2f}x", cell.Prefill() / f16.Prefill());
        decode_ratio = fmt::format("{:.2f}x", cell.Decode() / f16.Decode());
      }
      entry["prefill_tps_rounds"] = cell.prefill;
      entry["decode_tps_rounds"] = cell.decode;
      list.push_back(entry);
      table.Add({fmt::format("{}", depth), cache, fmt::format("{:.0f}", cell.Prefill()), prefill_ratio,
                 fmt::format("{:.1f}", cell.Decode()), decode_ratio});
    }
  }
  const int64_t context = options.depths.back() + options.new_tokens;
  Json memory_list = Json::array();
  TextTable memory_table({"<cache", fmt::format("KV cache, {} tokens", context), "vs f16"});
  for (const std::string& cache : caches) {
    const Memory& memory = results.memory.at(cache);
    const double ratio = memory.f16_bytes / memory.bytes;
    memory_list.push_back({{"recipe", cache}, {"context", context}, {"kv_bytes", memory.bytes}, {"kv_vs_f16", ratio}});
    memory_table.Add({cache, Bytes(memory.bytes), fmt::format("{:.2f}x", ratio)});
  }
  if (options.json) {
    const Json report = {{"model", options.model},
                         {"threads", options.threads},
                         {"new_tokens", options.new_tokens},
                         {"rounds", options.rounds},
                         {"machine", MachineText()},
                         {"commit", CommitText()},
                         {"command", CommandText(invocation.arguments)},
                         {"results", list},
                         {"memory", memory_list}};
    fmt::print("{}\n", report.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print("{} threads, {} new tokens a depth, median of {} rounds, {}\n\n{}\n{}", options.threads,
               options.new_tokens, options.rounds, MachineText(), table.Text(), memory_table.Text());
  }
}

// Any tokens take equally long; these are spread over the vocabulary and the same in every run.
std::vector<llama_token> ArbitraryTokens(const llama_model* model, int64_t count) {
  const llama_vocab* vocab = llama_model_get_vocab(model);
  const uint64_t size = static_cast<uint64_t>(std::max(1, llama_vocab_n_tokens(vocab)));
  std::vector<llama_token> tokens;
  for (uint64_t state = 1; std::ssize(tokens) < count;) {
    state = state * 6364136223846793005u + 1442695040888963407u;  // Knuth's MMIX generator
    tokens.push_back(static_cast<llama_token>((state >> 33) % size));
  }
  return tokens;
}

}  // namespace

Json BenchJob(const Json& job, const OnProgress& progress) {
  const eval::CacheChoice cache = eval::ParseCacheChoice(job.at("cache").get<std::string>());
  const std::vector<int64_t> depths = job.at("depths");
  const int64_t new_tokens = job.at("new_tokens");
  const int64_t context_tokens = depths.back() + new_tokens;
  const eval::ModelPtr model = eval::LoadModel(job.at("model"));
  const eval::ContextPtr context = eval::MakeContext(
      model.get(), cache, {.context = context_tokens, .threads = job.at("threads"), .require = job.at("require")});
  const std::vector<llama_token> tokens = ArbitraryTokens(model.get(), context_tokens);
  eval::WarmUp(context.get(), tokens);
  Json points = Json::array();
  for (const eval::DepthSpeed& speed : eval::MeasureDepths(
           context.get(), tokens, depths, new_tokens, [&](int64_t done) { progress("bench", done, context_tokens); }))
    points.push_back({{"depth", speed.depth}, {"prefill_tps", speed.prefill_tps}, {"decode_tps", speed.decode_tps}});
  const eval::KvUsage kv = eval::MeasureKv(context.get(), cache);
  return {{"points", points}, {"kv_bytes", kv.bytes}, {"kv_f16_bytes", kv.f16_bytes}};
}

void AddBench(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("bench", kDescription);
  command->footer(kExamples);
  command->add_option("-m,--model", options->model, "Model, a .gguf file")->required();
  command->add_option("--caches", options->caches, "Caches, separated by commas: llama.cpp's types or recipes")
      ->capture_default_str();
  command->add_option("--depths", options->depths, "Tokens in the cache when decoding begins, separated by commas")
      ->delimiter(',')
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->capture_default_str();
  command->add_option("-n,--new-tokens", options->new_tokens, "Tokens decoded at each depth")
      ->check(CLI::Range(int64_t{1}, int64_t{65536}))
      ->capture_default_str();
  command->add_option("-r,--rounds", options->rounds, "Rounds over all caches")
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "Threads; by default all processors")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--require", options->require, "Fail if a recipe leaves any layer in 16 bits")
      ->envname("KVRAZOR_REQUIRE");
  command->add_flag("--json", options->json, "Print JSON");
  command->add_flag("-q,--quiet", options->quiet, "No progress");
  command->add_flag("-v,--verbose", options->verbose, "Show llama.cpp's messages");
  command->callback([options, &invocation] { Bench(*options, invocation); });
}

}  // namespace kvrazor::apps
