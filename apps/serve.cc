// kvrazor serve: llama.cpp's own server, in this process, with the packed cache attached first.
#include <fmt/format.h>

#include <array>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <memory>
#include <optional>

#include "apps/commands.h"
#include "apps/failures.h"
#include "apps/help_format.h"
#include "eval/cache_choice.h"
#include "eval/gguf_header.h"
#include "kvrazor/ggml.h"
#include "ui.h"

/// llama.cpp's server (tools/server/server.cpp); its own main does nothing but call it.
int llama_server(int argc, char** argv);

namespace kvrazor::apps {
namespace {

constexpr char kDescription[] =
    "OpenAI-compatible server (llama.cpp's own) on the packed cache.\n"
    "llama.cpp's own server, with its OpenAI-compatible API and its web page, on the packed KV cache. The options "
    "below are kvrazor's; "
    "all others are passed on "
    "to the server unchanged (kvrazor serve --help-server lists them).";
constexpr char kExamples[] =
    "EXAMPLES\n"
    "  kvrazor serve -m model.gguf --port 8080        then open http://127.0.0.1:8080\n"
    "  kvrazor serve -m model.gguf -c 65536 -np 4 --recipe oscar --require\n"
    "  curl http://127.0.0.1:8080/v1/chat/completions -d "
    "'{\"messages\":[{\"role\":\"user\",\"content\":\"Hello\"}]}'\n\n"
    "EXIT STATUS\n"
    "  that of the server (0 after Ctrl-C); 1 the cache cannot be attached or the model is damaged; 2 wrong usage; "
    "3 --require and a layer stays in 16 bits.";

struct Options {
  std::string recipe = "razor-2";
  bool require = false, help = false, help_server = false;
  std::vector<std::string> passed_on;
  std::optional<std::string> model;
};

Options Parse(const std::vector<std::string>& arguments) {
  Options options;
  for (size_t i = 0; i < arguments.size(); ++i) {
    const std::string& argument = arguments[i];
    const auto value = [&](std::string_view name) -> std::optional<std::string> {
      const std::string prefix = std::string(name) + "=";
      if (argument.starts_with(prefix)) return argument.substr(prefix.size());
      if (argument != name) return std::nullopt;
      if (i + 1 >= arguments.size())
        throw UsageError(fmt::format("serve: {} needs a value.\nTry 'kvrazor serve --help'.", name));
      return arguments[++i];
    };
    if (const auto recipe = value("--recipe")) {
      options.recipe = *recipe;
    } else if (argument == "--require") {
      options.require = true;
    } else if (argument == "-h" || argument == "--help") {
      options.help = true;
    } else if (argument == "--help-server") {
      options.help_server = true;
    } else {
      const bool is_model = argument == "-m" || argument == "--model";
      options.passed_on.push_back(argument);
      if (is_model && i + 1 < arguments.size()) {
        options.model = arguments[++i];
        options.passed_on.push_back(*options.model);
      }
    }
  }
  if (!options.model) {
    if (const char* model = std::getenv("LLAMA_ARG_MODEL"); model && *model) options.model = model;
  }
  if (const char* require = std::getenv("KVRAZOR_REQUIRE"); require && *require && std::string_view(require) != "0")
    options.require = true;
  return options;
}

/// The folder of the built web page, or nothing where the server has a page of its own or the user chose another way.
std::optional<std::string> ServerPage([[maybe_unused]] const std::vector<std::string>& arguments) {
#ifdef LLAMA_UI_HAS_ASSETS
  return std::nullopt;
#else
  namespace fs = std::filesystem;
  for (const std::string& argument : arguments) {
    if (argument == "--path" || argument == "--no-ui" || argument == "--no-webui") return std::nullopt;
  }
  if (std::getenv("LLAMA_ARG_STATIC_PATH")) return std::nullopt;
  std::error_code error;
  const fs::path program = fs::read_symlink("/proc/self/exe", error);
  // Installed: PREFIX/bin/kvrazor and PREFIX/share/kvrazor; else the build's own.
  for (const fs::path& folder :
       {program.parent_path().parent_path() / "share/kvrazor/server_page", fs::path(KVRAZOR_SERVER_PAGE)}) {
    if (fs::exists(folder / "index.html", error)) return folder.string();
  }
  fmt::print(stderr,
             "kvrazor: no web page: it is not in '{}'. The API works (/v1, /completion). 'tools/bootstrap page' in "
             "kvrazor's sources fetches the page; --path DIR serves another one.\n",
             KVRAZOR_SERVER_PAGE);
  return std::nullopt;
#endif
}

int RunServer(std::vector<std::string> arguments) {
  arguments.insert(arguments.begin(), "kvrazor serve");
  std::vector<char*> pointers;
  for (std::string& argument : arguments) pointers.push_back(argument.data());
  pointers.push_back(nullptr);
  return llama_server(static_cast<int>(arguments.size()), pointers.data());
}

}  // namespace

void AddServeHelp(CLI::App& app) {
  CLI::App* command = app.add_subcommand("serve", kDescription);
  command->footer(kExamples);
  command->add_option("-m,--model", "Model, a .gguf file")->required();
  command->add_option("--recipe",
                      "How the KV cache is kept: a recipe (kvrazor methods) or a type of llama.cpp (default: razor-2)");
  command->add_flag("--require")->description("Fail if any layer stays in 16 bits");
  command->add_flag("--help-server")->description("List the server's own options");
}

int ServeMain(const std::vector<std::string>& arguments) {
  const Options options = Parse(arguments);
  if (options.help) {
    CLI::App app("", "kvrazor");
    app.formatter(std::make_shared<HelpFormat>());
    AddServeHelp(app);
    fmt::print("{}", app.get_subcommand("serve")->help("kvrazor"));
    return kExitOk;
  }
  if (options.help_server) return RunServer({"--help"});
  if (!options.model)
    throw UsageError(
        "serve: no model. Give one with -m FILE.gguf; the server's mode without a model starts other programs and "
        "cannot carry the cache.");
  const eval::GgufHeader header = eval::ReadGgufHeader(*options.model);
  for (const std::string& part : eval::GgufParts(header)) {
    if (part != *options.model) eval::ReadGgufHeader(part);
  }
  const eval::CacheChoice cache = eval::ParseCacheChoice(options.recipe);
  eval::UseCache(cache, options.require);
  std::vector<std::string> passed_on = options.passed_on;
  if (!cache.packed) {
    for (const char* option : {"--cache-type-k", "--cache-type-v"})
      passed_on.insert(passed_on.end(), {option, cache.name});
  }
  fmt::print(stderr, "kvrazor: KV cache '{}'{}\n", cache.name, cache.packed ? "" : " (llama.cpp's own)");
  if (const std::optional<std::string> page = ServerPage(passed_on)) {
    passed_on.insert(passed_on.end(), {"--path", *page});
  }
  const int status = RunServer(std::move(passed_on));
  kvrazor_ggml_stats stats = {};
  kvrazor_ggml_get_stats(&stats);
  if (status != 0 && stats.refused_contexts > 0) {
    throw RequirementError("--require: not every layer can be packed with '" + cache.name +
                           "' (the reason is above). Leave --require out to keep those layers in 16 bits.");
  }
  return status;
}

}  // namespace kvrazor::apps
