// The subcommands: each adds itself to the command line and runs when it was chosen.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

namespace kvrazor::apps {

/// What a command sees of its surroundings; filled in before any command runs.
struct Invocation {
  std::vector<std::string> arguments;  ///< the whole command line, the program's name first
  int status = 0;                      ///< exit status that the command wants if it did not throw
};

void AddRun(CLI::App& app, Invocation& invocation);
void AddCompare(CLI::App& app, Invocation& invocation);
void AddEval(CLI::App& app, Invocation& invocation);
void AddBench(CLI::App& app, Invocation& invocation);
void AddTune(CLI::App& app, Invocation& invocation);
void AddCalibrate(CLI::App& app, Invocation& invocation);
void AddPlan(CLI::App& app, Invocation& invocation);
void AddMethods(CLI::App& app, Invocation& invocation);
void AddExplain(CLI::App& app, Invocation& invocation);
/// Only its help: the arguments of `serve` are llama.cpp's and are not parsed here.
void AddServeHelp(CLI::App& app);
/// `arguments`: what follows "serve". Returns the exit status.
int ServeMain(const std::vector<std::string>& arguments);

}  // namespace kvrazor::apps
