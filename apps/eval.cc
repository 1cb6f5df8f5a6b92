// kvrazor eval: how much a cache costs in answers. Each evaluation is a command of its own below it.
#include "apps/eval.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>

#include "apps/failures.h"
#include "apps/machine.h"

namespace kvrazor::apps {

void AddModelOptions(CLI::App& command, ModelOptions& options, const std::string& out_help) {
  command.add_option("-m,--model", options.model, "Model, a .gguf file");
  command
      .add_option(
          "--caches", options.caches,
          "Caches, separated by commas: llama.cpp's own types (f16, q8_0, q4_0 ...) or recipes (kvrazor methods)")
      ->capture_default_str();
  command.add_option("-t,--threads", options.threads, "Threads; by default all processors")->check(CLI::Range(1, 1024));
  command.add_option("--out", options.out, out_help);
  command.add_flag("--require", options.require, "Fail if a recipe leaves any layer in 16 bits");
  command.add_flag("--json", options.json, "Print JSON");
  command.add_flag("-q,--quiet", options.quiet, "No progress");
  command.add_flag("-v,--verbose", options.verbose, "Show llama.cpp's messages");
}

Json ModelSettings(const std::string& path) {
  std::error_code error;
  const auto bytes = std::filesystem::file_size(path, error);
  if (error) throw Error(fmt::format("cannot open the model '{}': {}.", path, error.message()));
  return {{"file", std::filesystem::path(path).filename().string()}, {"bytes", bytes}};
}

bool Limit::FailsAt(double measured) const {
  if (or_equal && measured == value) return true;
  return std::isnan(measured) || (above ? measured > value : measured < value);
}

Limit ParseLimit(const std::string& text, const std::vector<std::string>& metrics) {
  const auto fail = [&] {
    return UsageError(fmt::format("--fail-if '{}': expected METRIC>NUMBER or METRIC<NUMBER with one of: {}.", text,
                                  fmt::join(metrics, ", ")));
  };
  std::string plain = text;
  std::erase(plain, ' ');
  const size_t at = plain.find_first_of("<>");
  if (at == std::string::npos) throw fail();
  Limit limit{.text = text, .metric = plain.substr(0, at), .above = plain[at] == '>'};
  limit.or_equal = plain.compare(at + 1, 1, "=") == 0;
  const std::string number = plain.substr(at + 1 + limit.or_equal);
  size_t used = 0;
  try {
    limit.value = std::stod(number, &used);
  } catch (const std::exception&) {
    throw fail();
  }
  if (used != number.size() || std::find(metrics.begin(), metrics.end(), limit.metric) == metrics.end()) throw fail();
  return limit;
}

void AddEval(CLI::App& app, Invocation& invocation) {
  CLI::App* command =
      app.add_subcommand("eval",
                         "How much a cache costs in accuracy: perplexity, KL divergence, LongBench and more.\n"
                         "Measures the accuracy of a model with several KV caches. Long runs go on where they stopped "
                         "when the same command is "
                         "given again with the same --out.");
  command->footer(
      "EXAMPLES\n"
      "  kvrazor eval kld -m model.gguf -f book.txt --caches oscar,razor-2 --out results\n"
      "  kvrazor eval longbench --score predictions.jsonl --json\n"
      "  kvrazor eval COMMAND --help                                everything about one of them\n\n"
      "EXIT STATUS\n"
      "  0 done; 1 failed; 2 wrong usage; 3 a requirement (--require, --fail-if) is not met; 130 interrupted.");
  command->require_subcommand(1);
  AddEvalAccuracy(*command, invocation);
  AddEvalSynthetic(*command, invocation);
  AddEvalLongBench(*command, invocation);
  AddEvalMultimodal(*command);
  AddEvalAnalyze(*command, invocation);
}

}  // namespace kvrazor::apps
