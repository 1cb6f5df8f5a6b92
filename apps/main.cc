// The kvrazor program: parses the command line, runs the command, turns errors into messages and exit statuses.
#include <fmt/format.h>

#include <csignal>
#include <cstdio>
#include <memory>
#include <new>
#include <string>
#include <system_error>
#include <vector>

#include "apps/build_info.h"
#include "apps/commands.h"
#include "apps/failures.h"
#include "apps/help_format.h"
#include "apps/text_table.h"
#include "apps/worker.h"
#include "eval/cache_choice.h"

namespace kvrazor::apps {
namespace {

constexpr char kDescription[] =
    "kvrazor: the KV cache of large language models in about 2 bits per value, for llama.cpp models (.gguf).";
constexpr char kFooter[] =
    "EXAMPLES\n"
    "  kvrazor compare -m model.gguf -f book.txt --out results   what each cache costs and how faithful it stays\n"
    "  kvrazor run -m model.gguf -p 'Why is the sky blue?'       write an answer with the packed cache\n"
    "  kvrazor serve -m model.gguf --port 8080                   OpenAI-compatible server with the packed cache\n"
    "  kvrazor plan model.gguf --memory 24G                      longest context and most users that fit\n"
    "  kvrazor COMMAND --help                                    everything about one command\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage; 3 a requirement (--require, a limit) is not met; 130 interrupted.";

int Fail(ExitStatus status, const std::string& message) {
  std::fflush(stdout);
  fmt::print(stderr, "kvrazor: {}\n", Printable(message));
  return status;
}

int ParseAndRun(std::vector<std::string> arguments) {
  Invocation invocation{.arguments = arguments};
  CLI::App app(kDescription, "kvrazor");
  app.formatter(std::make_shared<HelpFormat>());  // the subcommands inherit it
  app.footer(kFooter);
  app.set_version_flag("--version", fmt::format("kvrazor {} ({})", kBuildVersion, kBuildCommit));
  app.require_subcommand(1);
  AddRun(app, invocation);
  AddServeHelp(app);
  AddCompare(app, invocation);
  AddEval(app, invocation);
  AddTune(app, invocation);
  AddCalibrate(app, invocation);
  AddBench(app, invocation);
  AddPlan(app, invocation);
  AddMethods(app, invocation);
  AddExplain(app, invocation);
  try {
    std::vector<std::string> reversed(arguments.rbegin(), arguments.rend() - 1);  // CLI11 takes them from the back
    app.parse(std::move(reversed));
  } catch (const CLI::Success& e) {
    return app.exit(e) == 0 ? kExitOk : kExitFailed;
  } catch (const CLI::ParseError& e) {
    const auto chosen = app.get_subcommands();
    return Fail(kExitUsage, fmt::format("{}\nTry 'kvrazor {}--help'.", e.what(),
                                        chosen.empty() ? "" : chosen.front()->get_name() + " "));
  }
  return invocation.status;
}

}  // namespace

constexpr char kOutputFailed[] = "writing to the standard output failed. Is the disk full?";

int Main(std::vector<std::string> arguments) {
  // A file over the limit (ulimit -f) is a failed write, with a message, not an end by a signal.
  std::signal(SIGXFSZ, SIG_IGN);
  try {
    if (arguments.size() == 2 && arguments[1] == "worker") return WorkerMain();
    const bool serve = arguments.size() > 1 && arguments[1] == "serve";
    const int status = serve ? ServeMain({arguments.begin() + 2, arguments.end()}) : ParseAndRun(arguments);
    if (std::fflush(stdout) != 0 || std::ferror(stdout)) return Fail(kExitFailed, kOutputFailed);
    return status;
  } catch (const UsageError& e) {
    return Fail(kExitUsage, e.what());
  } catch (const RequirementError& e) {
    return Fail(kExitRequirement, e.what());
  } catch (const eval::NotPackedError& e) {
    return Fail(kExitRequirement, e.what());
  } catch (const Interrupted& e) {
    return Fail(kExitInterrupted, e.what());
  } catch (const std::system_error& e) {
    // fmt::print throws once its buffer is full, and does not say of what.
    return Fail(kExitFailed, std::ferror(stdout) ? kOutputFailed : e.what());
  } catch (const std::bad_alloc&) {
    return Fail(kExitFailed, "out of memory. Try a shorter context (-c).");
  } catch (const std::exception& e) {
    return Fail(kExitFailed, e.what());
  }
}

}  // namespace kvrazor::apps

int main(int argc, char** argv) { return kvrazor::apps::Main({argv, argv + argc}); }
