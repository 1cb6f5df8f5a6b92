// The parts of `kvrazor eval`, and what they share.
#pragma once

#include <CLI/CLI.hpp>
#include <string>
#include <vector>

#include "apps/commands.h"
#include "apps/jsonl.h"
#include "apps/worker.h"

namespace kvrazor::apps {

void AddEvalAccuracy(CLI::App& eval, Invocation& invocation);   ///< ppl and kld
void AddEvalLongBench(CLI::App& eval, Invocation& invocation);  ///< longbench
void AddEvalAnalyze(CLI::App& eval, Invocation& invocation);    ///< analyze
void AddEvalMultimodal(CLI::App& eval);                         ///< ocrbench and mmau-pro
void AddEvalSynthetic(CLI::App& eval, Invocation& invocation);  ///< needle, passkey, ruler

/// Options that every evaluation of a model has.
struct ModelOptions {
  std::string model, out;
  std::string caches = "f16,kivi,oscar,razor-2";
  int threads = 0;
  bool json = false, quiet = false, require = false, verbose = false;
};
void AddModelOptions(CLI::App& command, ModelOptions& options, const std::string& out_help);

/// Name and size of the model's file: what settings of a run say about it.
Json ModelSettings(const std::string& path);

/// "kld>0.05", "kld_p99 >= 0.5" or "same_top<0.9".
struct Limit {
  std::string text, metric;
  bool above = true;  ///< fails if the value is greater (less)
  bool or_equal = false;
  double value = 0;
  bool FailsAt(double measured) const;
};
/// Throws UsageError with the metrics that can be named.
Limit ParseLimit(const std::string& text, const std::vector<std::string>& metrics);

}  // namespace kvrazor::apps
