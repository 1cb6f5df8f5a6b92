// kvrazor explain: which format and kernel each layer of a model gets, and why.
#include <fmt/format.h>

#include <memory>

#include "apps/commands.h"
#include "apps/failures.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/text_table.h"
#include "apps/worker.h"
#include "eval/model.h"

namespace kvrazor::apps {
namespace {

struct Options {
  std::string model, recipe = "razor-2";
  int64_t context = 1024;
  bool json = false, require = false, verbose = false;
};

// Equal neighbours become one line "0-29".
void ShowTable(const Json& layers) {
  struct Line {
    int64_t first, last;
    Json entry;
  };
  std::vector<Line> lines;
  for (const std::string side : {"k", "v"}) {
    for (const Json& layer : layers) {
      if (layer.at("side") != side) continue;
      Json rest = layer;
      rest.erase("layer");
      const int64_t number = layer.at("layer");
      if (!lines.empty() && lines.back().entry == rest && lines.back().last + 1 == number)
        lines.back().last = number;
      else
        lines.push_back({number, number, rest});
    }
  }
  TextTable table({"<layers", "<side", "<format", "<kernel", "bits/value", "<why"});
  for (const Line& line : lines) {
    table.Add({line.first == line.last ? fmt::format("{}", line.first) : fmt::format("{}-{}", line.first, line.last),
               line.entry.at("side"), line.entry.at("format"), line.entry.at("kernel"),
               fmt::format("{:.2f}", line.entry.at("bits_per_value").get<double>()), line.entry.at("reason")});
  }
  fmt::print("{}", table.Text());
}

void Explain(const Options& options) {
  CatchInterrupts();
  const eval::CacheChoice cache = eval::ParseCacheChoice(options.recipe);
  const Json layers = RunWorker({{"kind", "explain"},
                                 {"model", options.model},
                                 {"cache", options.recipe},
                                 {"context", options.context},
                                 {"require", options.require},
                                 {"verbose", options.verbose}},
                                -1, {});
  if (options.json)
    fmt::print("{}\n", layers.dump(2));
  else if (layers.empty())
    fmt::print("{}: llama.cpp's own cache in all layers; kvrazor keeps none.\n", cache.name);
  else
    ShowTable(layers);
}

}  // namespace

Json ExplainJob(const Json& job, const OnProgress&) {
  const eval::CacheChoice cache = eval::ParseCacheChoice(job.at("cache").get<std::string>());
  const eval::ModelPtr model = eval::LoadModel(job.at("model"));
  const eval::ContextPtr context = eval::MakeContext(
      model.get(), cache, {.context = job.at("context"), .threads = NumProcessors(), .require = job.at("require")});
  return Json::parse(eval::ExplainLayers(cache));
}

void AddExplain(CLI::App& app, Invocation&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("explain");
  command->description(
      "Which format and kernel each layer gets, and why.\n"
      "Loads the model, makes a small context with the recipe and says for each layer's keys and values which format "
      "and which "
      "kernel they get, how many bits a value takes, and why a layer stays in 16 bits.");
  command->footer(
      "EXAMPLES\n"
      "  kvrazor explain model.gguf\n"
      "  kvrazor explain model.gguf --recipe oscar --json\n"
      "  kvrazor explain model.gguf --require || echo 'not every layer can be packed'\n\n"
      "EXIT STATUS\n"
      "  0 done; 1 failed; 2 wrong usage; 3 --require and a layer stays in 16 bits.");
  command->add_option("model,-m,--model", options->model, "Model, a .gguf file")->required();
  command->add_option("--recipe", options->recipe, "Recipe (kvrazor methods)")->capture_default_str();
  command->add_option("-c,--context", options->context, "Tokens of the context")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 31))
      ->capture_default_str();
  command->add_flag("--require", options->require, "Fail if any layer stays in 16 bits")->envname("KVRAZOR_REQUIRE");
  command->add_flag("--json", options->json, "Print a JSON list, one object a layer and side");
  command->add_flag("-v,--verbose", options->verbose, "Show llama.cpp's messages");
  command->callback([options] { Explain(*options); });
}

}  // namespace kvrazor::apps
