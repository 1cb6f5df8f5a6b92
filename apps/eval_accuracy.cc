// kvrazor eval ppl and kld: perplexity and KL divergence of several caches in windows of a text.
#include "apps/eval_accuracy.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstdlib>
#include <memory>

#include "apps/atomic_files.h"
#include "apps/eval.h"
#include "apps/failures.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress.h"
#include "apps/read_text.h"
#include "eval/accuracy.h"
#include "eval/cache_choice.h"
#include "eval/model_shape.h"
#include "eval/text_windows.h"

namespace kvrazor::apps {
namespace {

constexpr char kReference[] = "f16";
// The same 16 bits through kvrazor's storage and attention: against it, a difference is the quantization's alone.
constexpr char kOwnReference[] = "kvrazor:f16";

constexpr char kKldDescription[] =
    "KL divergence from the 16-bit cache, and perplexity.\n"
    "Reads windows of a text with the 16-bit cache and with each of the others, 128 tokens at a time, so that all but "
    "the "
    "newest tokens are read back from the cache as in decoding. At each position the distributions of the next token "
    "are "
    "compared: KL divergence in nats (mean, median, 99 %, 99.9 %, largest), share of positions with the same most "
    "likely "
    "token, perplexity; all of them also by how many tokens stand before the position.";
constexpr char kPplDescription[] =
    "Perplexity.\n"
    "Reads windows of a text with each cache, 128 tokens at a time, so that all but the newest tokens are read back "
    "from the "
    "cache as in decoding, and gives the perplexity of the text's own next tokens. With --first at half the window it "
    "looks "
    "at the positions that llama.cpp's llama-perplexity looks at.";
constexpr char kFooter[] =
    "EXAMPLES\n"
    "  kvrazor eval {0} -m model.gguf -f book.txt --windows 3 --caches kivi,oscar,razor-2 --out results\n"
    "  kvrazor eval {0} -m model.gguf -f book.txt --window 8192 --stride 4096 --step 8\n"
    "  kvrazor eval {0} -m model.gguf -f book.txt --caches razor-2 --json --fail-if '{1}' || echo 'too much is "
    "lost'\n\n"
    "FILES\n"
    "  With --out DIR: DIR/{0}.json, DIR/index.html (table and plots; needs nothing else), DIR/run.json (settings) "
    "and\n"
    "  DIR/windows.jsonl (every window measured so far: the same command goes on from there, more caches can be "
    "added).\n"
    "  While it runs, an unnamed temporary file holds the 16-bit distributions of one window: positions x vocabulary x "
    "4 bytes.\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage; 3 --require or --fail-if; 130 interrupted.";

struct Options : ModelOptions {
  std::string text;
  std::string reference = kReference;
  eval::WindowChoice choice;
  int64_t first = -1;
  bool seal_newest = false, shadow = false;
  std::string calibration;
  std::vector<std::string> fail_if;
};

std::vector<std::string> Metrics(bool with_reference) {
  if (!with_reference) return {"ppl"};
  return {"kld", "kld_mean", "kld_median", "kld_p99", "kld_p999", "kld_max", "ppl", "ppl_change", "same_top1"};
}

std::string FieldName(const std::string& metric) { return metric == "kld" ? "kld_mean" : metric; }

// The reference first where there is one, else as asked for.
std::vector<std::string> OrderedCaches(const Options& options, bool with_reference) {
  std::vector<std::string> caches = eval::SplitCacheNames(options.caches, options.shadow);
  if (!with_reference) return caches;
  std::erase(caches, options.reference);
  caches.insert(caches.begin(), options.reference);
  return caches;
}

void CheckWindow(const Options& options) {
  const eval::WindowChoice& w = options.choice;
  const int64_t trained = eval::ReadModelShape(options.model).trained_context;
  if (trained > 0 && w.window > trained)
    throw UsageError(
        fmt::format("--window {}: the model was trained for {} tokens. Give {} or less.", w.window, trained, trained));
  eval::WindowPositions(w);
  if (options.seal_newest && w.window % eval::kAccuracyBatch != 0)
    throw UsageError(fmt::format("--seal-newest needs windows of whole pages; --window {} is no multiple of {}.",
                                 w.window, eval::kAccuracyBatch));
}

void CheckLimits(const Json& results, const std::string& reference, const std::vector<Limit>& limits) {
  std::string failed;
  for (const Json& r : results) {
    if (r.at("recipe") == reference) continue;
    for (const Limit& limit : limits) {
      const double value = r.at(FieldName(limit.metric));
      if (limit.FailsAt(value))
        failed += fmt::format("\n  {}: {} is {:.6g}", r.at("recipe").get<std::string>(), limit.metric, value);
    }
  }
  if (failed.empty()) return;
  std::string asked;
  for (const Limit& limit : limits) asked += " '" + limit.text + "'";
  throw RequirementError(fmt::format("--fail-if{} holds:{}", asked, failed));
}

void MeasureAll(Options options, bool with_reference, const Invocation& invocation) {
  const char* name = with_reference ? "kld" : "ppl";
  if (options.threads == 0) options.threads = NumProcessors();
  options.choice.first = options.first >= 0 ? options.first
                         : options.choice.stride > 0 && options.choice.stride < options.choice.window
                             ? std::max<int64_t>(256, options.choice.window - options.choice.stride)
                             : std::min<int64_t>(256, options.choice.window / 2);
  std::vector<Limit> limits;
  for (const std::string& text : options.fail_if) limits.push_back(ParseLimit(text, Metrics(with_reference)));
  const std::vector<std::string> caches = OrderedCaches(options, with_reference);
  if (options.shadow && options.require)
    throw UsageError(
        "--shadow leaves every layer in llama.cpp's 16-bit cache, which --require forbids. Give one of them.");
  if (options.shadow && options.seal_newest)
    throw UsageError("--seal-newest takes tokens back, which --shadow cannot follow. Give one of them.");
  if (options.shadow && options.reference != kReference)
    throw UsageError(fmt::format(
        "--reference {}: --shadow measures with llama.cpp's attention, so its reference is {}. Leave --reference out.",
        options.reference, kReference));
  if (!options.calibration.empty() && !options.shadow)
    throw UsageError("--calibration is for methods that only shadow mode evaluates. Add --shadow.");
  CheckWindow(options);
  const std::string text = ReadTextFile(options.text);
  const eval::WindowChoice& w = options.choice;
  const Json window = {
      {"window", w.window}, {"stride", w.stride}, {"windows", w.windows}, {"first", w.first}, {"step", w.step}};
  // How many windows is not among the settings: a run can be extended.
  Json settings = {{"evaluation", name},
                   {"model", ModelSettings(options.model)},
                   {"text", Fingerprint(text)},
                   {"window", w.window},
                   {"stride", w.stride},
                   {"first", w.first},
                   {"step", w.step}};
  if (options.reference != kReference) settings["reference"] = options.reference;
  if (options.seal_newest) settings["seal_newest"] = true;
  if (options.shadow) settings["shadow"] = true;
  if (!options.calibration.empty()) settings["calibration"] = Fingerprint(ReadTextFile(options.calibration));
  Progress progress(options.quiet);
  if (!options.out.empty() && OpenRunFolder(options.out, settings))
    progress.Line(fmt::format("going on with the run in '{}'", options.out));
  CatchInterrupts();

  Json job = {{"kind", "accuracy"},
              {"model", options.model},
              {"text", text},
              {"caches", caches},
              {"threads", options.threads},
              {"with_reference", with_reference},
              {"require", options.require},
              {"seal_newest", options.seal_newest},
              {"shadow", options.shadow},
              {"calibration", options.calibration},
              {"verbose", options.verbose},
              {"journal", options.out.empty() ? "" : options.out + "/windows.jsonl"}};
  job.update(window);
  std::optional<eval::ReferenceFile> reference;
  if (with_reference) {
    const char* temporary = std::getenv("TMPDIR");
    const std::string folder = !options.out.empty() ? options.out : temporary && *temporary ? temporary : "/tmp";
    const int64_t vocabulary = std::max<int64_t>(eval::ReadModelShape(options.model).vocabulary, 1);
    reference.emplace(eval::ReferenceFile::Create(
        folder, std::ssize(eval::WindowPositions(w)) * vocabulary * static_cast<int64_t>(sizeof(float))));
    job["reference_fd"] = reference->fd();
  }
  const Json measured =
      RunWorker(job, reference ? reference->fd() : -1,
                [&](const std::string& stage, int64_t done, int64_t total) { progress.Update(stage, done, total); });
  progress.Done();

  Json report = {{"evaluation", name}, {"model", options.model}, {"text", options.text}};
  report.update(window);
  report["windows"] = measured.at("windows");
  if (with_reference) report["reference"] = options.reference;
  report["newest_page"] = options.seal_newest ? "sealed" : "16 bits";
  report["threads"] = options.threads;
  report["machine"] = MachineText();
  report["commit"] = CommitText();
  report["command"] = CommandText(invocation.arguments);
  report["results"] = SummarizeAccuracy(caches, measured.at("measurements"), measured.at("windows"), with_reference);
  const std::string json = report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!options.out.empty())
    WriteAtomically(
        {{fmt::format("{}/{}.json", options.out, name), json}, {options.out + "/index.html", AccuracyHtml(report)}});
  if (options.json) {
    fmt::print("{}", json);
  } else {
    fmt::print("{} windows of {} tokens of {}, positions from {} on, {} threads, {}\n\n{}\n{}",
               report.at("windows").get<int64_t>(), w.window, options.text, w.first, options.threads, MachineText(),
               AccuracyTable(report), AccuracyBuckets(report));
    if (!options.out.empty()) fmt::print("\nWritten: {0}/{1}.json and {0}/index.html\n", options.out, name);
  }
  CheckLimits(report.at("results"), options.reference, limits);
}

void AddOne(CLI::App& eval, Invocation& invocation, bool with_reference) {
  auto options = std::make_shared<Options>();
  CLI::App* command =
      eval.add_subcommand(with_reference ? "kld" : "ppl", with_reference ? kKldDescription : kPplDescription);
  command->footer(with_reference ? fmt::format(kFooter, "kld", "kld>0.05") : fmt::format(kFooter, "ppl", "ppl>20"));
  AddModelOptions(*command, *options, "Folder for the report and for going on after an interruption");
  command->get_option("--model")->required();
  command->add_option("-f,--file", options->text, "Text to read, UTF-8")->required();
  command->add_option("--window", options->choice.window, "Tokens of a window, read from an empty cache")
      ->check(CLI::Range(int64_t{16}, int64_t{1} << 31))
      ->capture_default_str();
  command
      ->add_option("--stride", options->choice.stride,
                   "Tokens from one window's start to the next; by default a window")
      ->check(CLI::PositiveNumber);
  command
      ->add_option("--windows", options->choice.windows, "At most so many windows; by default all that the text holds")
      ->check(CLI::PositiveNumber);
  command
      ->add_option(
          "--first", options->first,
          "First position of each window that is looked at; by default 256, or with overlapping windows the first "
          "one that the window before did not have")
      ->check(CLI::NonNegativeNumber);
  command->add_option("--step", options->choice.step, "Look at every so many positions")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  if (with_reference)
    command
        ->add_option("--reference", options->reference,
                     "What the others are compared with: f16, llama.cpp's own cache and attention; or kvrazor:f16, the "
                     "same values through kvrazor's, which leaves out the difference in rounding between the two")
        ->check(CLI::IsMember({kReference, kOwnReference}))
        ->capture_default_str();
  command->add_flag("--seal-newest", options->seal_newest,
                    "Read every 128 tokens twice, so that the page before them is quantized as well: harsher than any "
                    "use, the conditions of studies that flush whole blocks");
  command->add_flag(
      "--shadow", options->shadow,
      "Measure recipes on llama.cpp's 16-bit cache, overwritten with the dequantized values: for accuracy only, "
      "also where the plug-in packs nothing (head sizes of 80 or 96, logits with a bias)");
  command->add_option("--calibration", options->calibration,
                      "With --shadow: the model's file of kvrazor calibrate, for rotatekv");
  command
      ->add_option("--fail-if", options->fail_if,
                   "Exit status 3 if this holds for any cache but the reference, for example 'kld>0.05', 'kld_p999>1', "
                   "'kld_max>5' or "
                   "'same_top1<0.9'")
      ->allow_extra_args(false);
  command->callback([options, &invocation, with_reference] { MeasureAll(*options, with_reference, invocation); });
}

}  // namespace

void AddEvalAccuracy(CLI::App& eval, Invocation& invocation) {
  AddOne(eval, invocation, /*with_reference=*/true);
  AddOne(eval, invocation, /*with_reference=*/false);
}

}  // namespace kvrazor::apps
