// kvrazor plan: what fits into a given memory, from the header of the model alone.
#include <fmt/format.h>

#include <memory>

#include "apps/commands.h"
#include "apps/failures.h"
#include "apps/memory_plan.h"
#include "apps/text_table.h"
#include "apps/worker.h"
#include "kvrazor/recipe.h"

namespace kvrazor::apps {
namespace {

constexpr char kDescription[] =
    "Longest context and most users that fit into a memory.\n"
    "Says, for each cache, the longest context and the most users that fit into a memory beside the model, from the "
    "header of the file alone: "
    "the model is not loaded. Weights: the tensors in the file. KV cache: sealed pages, 16-bit windows and sinks, a "
    "user each. Workspace: an "
    "estimate of the buffers for a batch of 512 tokens.";
constexpr char kExamples[] =
    "EXAMPLES\n"
    "  kvrazor plan model.gguf --memory 24G\n"
    "  kvrazor plan model.gguf --memory 24G --users 8            longest context for 8 users\n"
    "  kvrazor plan model.gguf --memory 24G --context 32768      most users of 32768 tokens each\n"
    "  kvrazor plan model.gguf --memory 8G --users 4 --context 8192 --json\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 the file cannot be read or is damaged; 2 wrong usage; 3 not even the smallest of the caches fits.";

struct Options {
  std::string model, memory, caches;
  int64_t users = 0, context = 0;
  bool json = false;
};

std::vector<std::string> DefaultCaches() {
  std::vector<std::string> caches = {"f16", "q8_0", "q4_0"};
  for (const Method& method : Methods()) {
    if (!method.recipe.is_f16()) caches.push_back(method.name);
  }
  return caches;
}

Json PlanCache(const eval::ModelShape& shape, const std::string& name, const Options& options, double bytes_for_kv,
               int64_t users, int64_t context) {
  const eval::CacheChoice cache = eval::ParseCacheChoice(name);
  const int64_t longest = LongestContext(shape, cache, users, bytes_for_kv, shape.trained_context);
  const double kv = KvBytes(shape, cache, context);
  const double f16_values = KvBytes(shape, eval::ParseCacheChoice("f16"), context);
  return {{"recipe", name},
          {"bits_per_value", f16_values > 0 ? 16 * kv / f16_values : 0},
          {"users", users},
          {"longest_context", longest},
          {"limited_by", longest >= shape.trained_context ? "model" : "memory"},
          {"context", context},
          {"most_users", MostUsers(shape, cache, context, bytes_for_kv)},
          {"kv_bytes_per_user", kv},
          {"fits", static_cast<double>(users) * kv <= bytes_for_kv},
          {"note", UnpackedLayers(shape, cache)}};
}

void ShowPlan(const Options& options, Invocation& invocation) {
  const double memory = ParseBytes(options.memory);
  const eval::ModelShape shape = eval::ReadModelShape(options.model);
  const int64_t context = options.context > 0 ? options.context : shape.trained_context;
  const int64_t users = options.users > 0 ? options.users : 1;
  if (shape.trained_context == 0)
    throw Error(
        fmt::format("the model '{}' says that it was trained for 0 tokens. The file is damaged.", options.model));
  if (context > shape.trained_context)
    throw UsageError(fmt::format("--context {}: the model was trained for {} tokens. Give {} or less.", context,
                                 shape.trained_context, shape.trained_context));
  const double weights = static_cast<double>(shape.weight_bytes), workspace = WorkspaceBytes(shape);
  const double bytes_for_kv = memory - weights - workspace;

  Json rows = Json::array();
  bool any_fits = false;
  for (const std::string& name : options.caches.empty() ? DefaultCaches() : eval::SplitCacheNames(options.caches)) {
    rows.push_back(PlanCache(shape, name, options, bytes_for_kv, users, context));
    any_fits = any_fits || rows.back().at("longest_context").get<int64_t>() >= (options.context > 0 ? context : 1);
  }
  if (options.json) {
    const Json report = {{"model", shape.name},
                         {"architecture", shape.architecture},
                         {"trained_context", shape.trained_context},
                         {"layers", shape.layers.size()},
                         {"memory_bytes", memory},
                         {"weight_bytes", weights},
                         {"workspace_bytes", workspace},
                         {"bytes_for_kv", std::max(0.0, bytes_for_kv)},
                         {"notes", shape.notes},
                         {"caches", rows}};
    fmt::print("{}\n", report.dump(2, ' ', false, Json::error_handler_t::replace));
  } else {
    fmt::print(
        "{} ({}, {} layers, trained for {} tokens)\nMemory {}: weights {}, workspace {} (estimated), left for KV "
        "caches {}\n\n",
        Printable(shape.name), Printable(shape.architecture), shape.layers.size(), shape.trained_context, Bytes(memory),
        Bytes(weights), Bytes(workspace), bytes_for_kv > 0 ? Bytes(bytes_for_kv) : "nothing");
    TextTable table({"<cache", "bits/value", fmt::format("longest context, {} user{}", users, users == 1 ? "" : "s"),
                     "<limited by", fmt::format("KV at {} tokens", context),
                     fmt::format("most users of {} tokens", context)});
    for (const Json& row : rows) {
      const int64_t longest = row.at("longest_context");
      table.Add(
          {row.at("recipe"), fmt::format("{:.2f}", row.at("bits_per_value").get<double>()),
           longest > 0 ? fmt::format("{}", longest) : "none", row.at("limited_by") == "model" ? "the model" : "memory",
           Bytes(row.at("kv_bytes_per_user").get<double>()), fmt::format("{}", row.at("most_users").get<int64_t>())});
    }
    fmt::print("{}", table.Text());
    for (const std::string& note : shape.notes) fmt::print("\nNote: {}\n", note);
    for (const Json& row : rows) {
      if (const std::string note = row.at("note"); !note.empty())
        fmt::print("\nNote: {}: {}.\n", row.at("recipe").get<std::string>(), note);
    }
  }
  if (!any_fits) {
    fmt::print(stderr,
               "kvrazor: no cache fits into {} with {} user{}. Give more --memory, fewer --users, a shorter --context "
               "or a smaller model.\n",
               options.memory, users, users == 1 ? "" : "s");
    invocation.status = kExitRequirement;
  }
}

}  // namespace

void AddPlan(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("plan", kDescription);
  command->footer(kExamples);
  command->add_option("model,-m,--model", options->model, "Model, a .gguf file")->required();
  command->add_option("--memory", options->memory, "Memory to use, for example 24G or 512M (units of 1024)")
      ->required();
  command->add_option("--users", options->users, "Sequences held at once (default: 1)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 30));
  command->add_option("--context", options->context, "Tokens a user (default: what the model was trained for)")
      ->check(CLI::Range(int64_t{1}, int64_t{1} << 40));
  command->add_option(
      "--caches", options->caches,
      "Caches, separated by commas: llama.cpp's types or recipes (default: f16,q8_0,q4_0 and all methods)");
  command->add_flag("--json", options->json, "Print JSON");
  command->callback([options, &invocation] { ShowPlan(*options, invocation); });
}

}  // namespace kvrazor::apps
