// kvrazor calibrate: what some methods need to know of a model beforehand, from a text.
#include <fmt/format.h>

#include <filesystem>
#include <memory>

#include "apps/atomic_files.h"
#include "apps/commands.h"
#include "apps/failures.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress.h"
#include "apps/read_text.h"
#include "apps/worker.h"
#include "eval/accuracy.h"
#include "eval/calibration.h"
#include "eval/model.h"
#include "eval/model_shape.h"
#include "eval/text_windows.h"

namespace kvrazor::apps {
namespace {

constexpr char kDescription[] =
    "Calibration of a model for methods that need one (rotatekv).\n"
    "Reads windows of a text with the 16-bit cache, rotates each layer's keys as they are before RoPE over groups of "
    "heads, and sums "
    "them by channel. The channels in ascending order of their sums are what rotatekv groups: channels of like level "
    "share a scale. "
    "The file holds these orders and a fingerprint of the model; it serves no other one, nor another quantization of "
    "its weights.";
constexpr char kFooter[] =
    "EXAMPLES\n"
    "  kvrazor calibrate model.gguf book.txt -o model.calibration.json\n"
    "  kvrazor eval kld -m model.gguf -f another.txt --shadow --calibration model.calibration.json --caches "
    "rotatekv\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage; 130 interrupted.";

struct Options {
  std::string model, text, out;
  int64_t window = 2048, windows = 16;
  int threads = 0;
  bool quiet = false, verbose = false;
};

void Calibrate(Options options) {
  if (options.threads == 0) options.threads = NumProcessors();
  const int64_t trained = eval::ReadModelShape(options.model).trained_context;
  if (trained > 0 && options.window > trained)
    throw UsageError(fmt::format("--window {}: the model was trained for {} tokens. Give {} or less.", options.window,
                                 trained, trained));
  // Now, not after an hour of reading.
  const std::filesystem::path folder = std::filesystem::path(options.out).parent_path();
  if (!folder.empty() && !std::filesystem::is_directory(folder))
    throw UsageError(fmt::format("-o {}: there is no folder '{}'.", options.out, folder.string()));
  const std::string text = ReadTextFile(options.text);
  CatchInterrupts();
  Progress progress(options.quiet);
  const Json job = {{"kind", "calibrate"},       {"model", options.model},     {"text", text},
                    {"window", options.window},  {"windows", options.windows}, {"threads", options.threads},
                    {"verbose", options.verbose}};
  const Json result = RunWorker(
      job, -1, [&](const std::string& stage, int64_t done, int64_t total) { progress.Update(stage, done, total); });
  progress.Done();
  WriteAtomically({{options.out, result.at("file")}});
  fmt::print("{} layers, {} tokens of {}: written {}\n", result.at("layers").get<int64_t>(),
             result.at("tokens").get<int64_t>(), options.text, options.out);
}

}  // namespace

Json CalibrateJob(const Json& job, const OnProgress& progress) {
  progress("loading", 0, 1);
  const std::string path = job.at("model");
  const eval::ModelPtr model = eval::LoadModel(path);
  if (llama_model_has_encoder(model.get()))
    throw Error("the model has an encoder: it does not continue a text, and its keys are not those of one.");
  const std::vector<llama_token> text =
      eval::Tokenize(model.get(), job.at("text").get<std::string>(), /*add_first=*/true, /*special=*/false);
  const int64_t window = job.at("window");
  const std::vector<int64_t> starts =
      eval::WindowStarts(std::ssize(text), {.window = window, .windows = job.at("windows")});
  eval::KeyChannelSums sums;
  for (size_t i = 0; i < starts.size(); ++i) {
    const eval::ContextPtr context = eval::MakeContext(model.get(), eval::ParseCacheChoice("f16"),
                                                       {.context = window,
                                                        .threads = job.at("threads"),
                                                        .on_node = eval::KeyChannelSums::OnNode,
                                                        .on_node_data = &sums});
    const std::string stage = fmt::format("window {}/{}", i + 1, starts.size());
    eval::Feed(context.get(), std::span(text).subspan(static_cast<size_t>(starts[i]), static_cast<size_t>(window)), 0,
               [&](int64_t done) {
                 sums.EndBatch();
                 progress(stage, done, window);
               });
  }
  eval::Calibration calibration = sums.Result();
  calibration.model = std::filesystem::path(path).filename().string();
  calibration.fingerprint = eval::ModelFingerprint(path);
  return {{"file", eval::ToJson(calibration)}, {"layers", calibration.layers.size()}, {"tokens", calibration.tokens}};
}

void AddCalibrate(CLI::App& app, Invocation&) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("calibrate", kDescription);
  command->footer(kFooter);
  command->add_option("model", options->model, "Model, a .gguf file")->required();
  command->add_option("text", options->text, "Text to read, UTF-8; not the one that is evaluated later")->required();
  command->add_option("-o,--out", options->out, "File to write, JSON")->required();
  command->add_option("--window", options->window, "Tokens of a window, read from an empty cache")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 31))
      ->capture_default_str();
  command->add_option("--windows", options->windows, "At most so many windows")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "Threads; by default all processors")
      ->check(CLI::Range(1, 1024));
  command->add_flag("-q,--quiet", options->quiet, "No progress");
  command->add_flag("-v,--verbose", options->verbose, "Show llama.cpp's messages");
  command->callback([options] { Calibrate(*options); });
}

}  // namespace kvrazor::apps
