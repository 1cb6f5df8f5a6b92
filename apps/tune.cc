// kvrazor tune: a recipe with a width of its own for each layer's keys and values, chosen by measured KL divergence under a budget.
//
//   choose    with keys and values at their finest, each level in all layers, and each group of layers at the coarsest level:
//             what a level costs, and which layers the cost comes from (eval/layer_policy.h)
//   confirm   the choice and the uniform recipes of about its bits, on windows of the text that had no part in the choice
#include "apps/tune.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <map>
#include <memory>
#include <set>

#include "apps/atomic_files.h"
#include "apps/eval.h"
#include "apps/eval_accuracy.h"
#include "apps/failures.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/progress.h"
#include "apps/read_text.h"
#include "eval/accuracy.h"
#include "eval/layer_policy.h"
#include "eval/text_windows.h"
#include "kvrazor/recipe_json.h"

namespace kvrazor::apps {
namespace {

using eval::LevelPair;
using Names = std::vector<std::string>;

constexpr char kReference[] = "f16";

constexpr char kDescription[] =
    "Chooses how many bits each layer's keys and values get, and writes a recipe.\n"
    "Measures, in the first half of some windows of a text, what each width of keys and values costs in KL divergence "
    "and which layers the "
    "cost comes from; chooses the recipe with the least divergence under a budget of bits per value (sealed pages with "
    "all their "
    "parameters); then measures it in the other windows beside the uniform recipes of about the same bits, and says "
    "what was gained, if "
    "anything. All programs take the file (--recipe, --caches).";
constexpr char kFooter[] =
    "EXAMPLES\n"
    "  kvrazor tune model.gguf book.txt --bits 2.5 -o recipe.json\n"
    "  kvrazor tune model.gguf book.txt --bits 2.75                 in the same folder: only the confirmation is new\n"
    "  kvrazor tune model.gguf book.txt --bits 2.5 --windows 2 --window 1024      quicker and rougher\n"
    "  kvrazor run -m model.gguf -p 'Hello' --recipe recipe.json\n\n"
    "FILES\n"
    "  DIR (--out) holds what was measured (windows.jsonl, run.json): the same command goes on from there after an "
    "interruption,\n"
    "  another budget uses it again. DIR/tune-BITS.json is the report, DIR/recipe-BITS.json the recipe unless -o names "
    "another file.\n\n"
    "EXIT STATUS\n"
    "  0 done, whether or not anything was gained; 1 failed; 2 wrong usage; 130 interrupted.";

struct Options {
  std::string model, text, recipe, out;
  double bits = 0;
  eval::WindowChoice choice{.windows = 4};
  int groups = 6, threads = 0;
  bool json = false, quiet = false, verbose = false;

  int64_t choosing_windows() const { return (choice.windows + 1) / 2; }
};

void AddOnce(Names& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

// --- what is measured to choose ---------------------------------------------------------------------------------------

constexpr Side kSides[] = {Side::kKey, Side::kValue};
const char* SideName(Side side) { return side == Side::kKey ? "keys" : "values"; }

LevelPair Finest() { return {eval::KeyLevels().size() - 1, eval::ValueLevels().size() - 1}; }

LevelPair With(LevelPair pair, Side side, size_t level) {
  (side == Side::kKey ? pair.k : pair.v) = level;
  return pair;
}

std::string LevelText(Side side, size_t level) { return eval::UniformText(With(Finest(), side, level)); }

std::string GroupText(const eval::PolicyCost& cost, const eval::LayerGroup& group, Side side) {
  eval::Policy policy = cost.Uniform(Finest());
  for (int layer = group.first; layer <= group.last; ++layer)
    policy[static_cast<size_t>(layer)] = With(Finest(), side, 0);
  return ToText(eval::PolicyRecipe(policy));
}

std::string LayersText(const eval::LayerGroup& g) {
  return g.first == g.last ? fmt::format("{}", g.first) : fmt::format("{}-{}", g.first, g.last);
}

Names ChoosingCaches(const eval::PolicyCost& cost, const std::vector<eval::LayerGroup>& groups,
                     std::map<std::string, std::string>& labels) {
  Names caches = {kReference};
  for (const Side side : kSides) {
    for (size_t level = eval::Levels(side).size(); level-- > 0;) {
      AddOnce(caches, LevelText(side, level));
      labels.try_emplace(LevelText(side, level),
                         fmt::format("all {} {}", SideName(side), eval::Levels(side)[level].name));
    }
    for (const eval::LayerGroup& group : groups) {
      AddOnce(caches, GroupText(cost, group, side));
      labels.try_emplace(GroupText(cost, group, side), fmt::format("layers {}, {} {}", LayersText(group),
                                                                   SideName(side), eval::Levels(side)[0].name));
    }
  }
  labels[eval::UniformText(Finest())] = "finest widths";
  return caches;
}

struct Measured {
  eval::Sensitivity sensitivity;
  std::vector<PairedLoss> key_losses, value_losses;  // [groups]
};

Measured SensitivityOf(const eval::PolicyCost& cost, const std::vector<eval::LayerGroup>& groups,
                       const std::vector<Json>& measurements) {
  Measured m;
  m.sensitivity.groups = groups;
  const std::string finest = eval::UniformText(Finest());
  for (const Side side : kSides) {
    std::vector<double>& levels = side == Side::kKey ? m.sensitivity.key_losses : m.sensitivity.value_losses;
    for (size_t level = 0; level < eval::Levels(side).size(); ++level)
      levels.push_back(CompareLosses(measurements, LevelText(side, level), finest).mean);
    std::vector<PairedLoss>& own = side == Side::kKey ? m.key_losses : m.value_losses;
    std::vector<eval::GroupLoss> losses;
    for (const eval::LayerGroup& group : groups) {
      own.push_back(CompareLosses(measurements, GroupText(cost, group, side), finest));
      losses.push_back({own.back().mean, own.back().standard_error});
    }
    (side == Side::kKey ? m.sensitivity.key_shares : m.sensitivity.value_shares) = eval::Shares(losses);
  }
  return m;
}

// --- rivals -----------------------------------------------------------------------------------------------------------

struct Rival {
  std::string text;
  double bits = 0, predicted = 0;
};

// The uniform recipes that a tuned one of so many bits has to beat: that of the least predicted divergence within the budget, that
// of the least at up to kMoreBits more, and the methods of this project in between.
std::vector<Rival> Rivals(const eval::PolicyCost& cost, const eval::Sensitivity& sensitivity, double bits,
                          double budget) {
  constexpr double kFewerBits = 0.1, kMoreBits = 0.2;
  std::vector<Rival> uniform, chosen;
  for (size_t k = 0; k < eval::KeyLevels().size(); ++k) {
    for (size_t v = 0; v < eval::ValueLevels().size(); ++v) {
      const eval::Policy policy = cost.Uniform({k, v});
      uniform.push_back({eval::UniformText({k, v}), cost.Bits(policy), eval::PredictedLoss(policy, sensitivity)});
    }
  }
  const auto add_best = [&](double from, double to) {
    const Rival* best = nullptr;
    for (const Rival& r : uniform) {
      if (r.bits >= from && r.bits <= to && (!best || r.predicted < best->predicted)) best = &r;
    }
    if (best && std::none_of(chosen.begin(), chosen.end(), [&](const Rival& r) { return r.text == best->text; }))
      chosen.push_back(*best);
    return best != nullptr;
  };
  add_best(0, budget);
  if (!add_best(bits, bits + kMoreBits)) {  // the next dearer one, if there is any
    std::sort(uniform.begin(), uniform.end(), [](const Rival& a, const Rival& b) { return a.bits < b.bits; });
    const auto next = std::find_if(uniform.begin(), uniform.end(), [&](const Rival& r) { return r.bits >= bits; });
    if (next != uniform.end()) add_best(next->bits, next->bits);
  }
  for (const Method& method : Methods()) {
    if (!method.name.starts_with("razor")) continue;
    const double own = cost.Bits(method.recipe);
    if (own < bits - kFewerBits || own > bits + kMoreBits) continue;
    if (std::none_of(chosen.begin(), chosen.end(), [&](const Rival& r) { return r.text == method.name; }))
      chosen.push_back({method.name, own, 0});
  }
  return chosen;
}

// --- running ----------------------------------------------------------------------------------------------------------

// Numbers the passes over a window and says after a few how long all take.
class Passes {
 public:
  Passes(Progress& progress, int64_t total, std::map<std::string, std::string> labels)
      : progress_(progress), total_(total), labels_(std::move(labels)) {}

  void Update(const std::string& stage, int64_t done, int64_t total) {
    if (stage != stage_ && stage != "loading") {
      stage_ = stage;
      if (pass_++ == 0) start_ = std::chrono::steady_clock::now();
      const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
      if (pass_ == kPassesTimed + 1 && total_ > 2 * kPassesTimed)
        progress_.Line(
            fmt::format("about {:.0f} minutes more",
                        std::max(1.0, seconds / kPassesTimed * static_cast<double>(total_ - kPassesTimed) / 60)));
    }
    const size_t comma = stage.find(", ");
    std::string label = stage;
    if (comma != std::string::npos) {
      const auto known = labels_.find(stage.substr(comma + 2));
      label = fmt::format("[{}/{}] {}, {}", std::min(pass_, total_), total_, stage.substr(0, comma),
                          known != labels_.end() ? known->second : stage.substr(comma + 2));
    }
    progress_.Update(label, done, total);
  }

 private:
  static constexpr int64_t kPassesTimed = 4;
  Progress& progress_;
  int64_t total_, pass_ = 0;
  std::map<std::string, std::string> labels_;
  std::string stage_;
  std::chrono::steady_clock::time_point start_;
};

struct Run {
  const Options& options;
  const std::string& text;
  Progress& progress;
  eval::ReferenceFile& reference;
};

// Passes that the journal does not hold yet; a window of which anything is missing needs its reference again.
int64_t MissingPasses(const Options& options, const Names& caches, int64_t from, int64_t to) {
  std::set<std::pair<std::string, int64_t>> done;
  const std::string path = options.out + "/windows.jsonl";
  if (std::filesystem::exists(path)) {
    const LineJournal journal(path);
    for (const Json& line : journal.lines()) done.emplace(line.at("cache"), line.at("window"));
  }
  int64_t passes = 0;
  for (int64_t window = from; window < to; ++window) {
    const int64_t missing = std::count_if(caches.begin() + 1, caches.end(), [&](const std::string& c) {
      return !done.contains({c, window});
    });
    passes += missing > 0 ? missing + 1 : !done.contains({caches.front(), window});
  }
  return passes;
}

std::vector<Json> Measure(const Run& run, const Names& caches, int64_t from, int64_t to,
                          const std::map<std::string, std::string>& labels, const char* what) {
  const Options& options = run.options;
  const eval::WindowChoice& w = options.choice;
  const int64_t missing = MissingPasses(options, caches, from, to);
  if (missing > 0)
    run.progress.Line(
        fmt::format("{}: {} passes over {} tokens, {} tokens in all", what, missing, w.window, missing * w.window));
  Passes passes(run.progress, missing, labels);
  const Json job = {{"kind", "accuracy"},
                    {"model", options.model},
                    {"text", run.text},
                    {"caches", caches},
                    {"threads", options.threads},
                    {"with_reference", true},
                    {"require", false},
                    {"verbose", options.verbose},
                    {"journal", options.out + "/windows.jsonl"},
                    {"window", w.window},
                    {"stride", w.stride},
                    {"windows", w.windows},
                    {"first_window", from},
                    {"end_window", to},
                    {"first", w.first},
                    {"step", w.step},
                    {"reference_fd", run.reference.fd()}};
  const Json measured = RunWorker(job, run.reference.fd(), [&](const std::string& stage, int64_t done, int64_t total) {
    passes.Update(stage, done, total);
  });
  run.progress.Done();
  std::vector<Json> own;
  for (const Json& m : measured.at("measurements")) {
    const int64_t window = m.at("window");
    if (window >= from && window < to) own.push_back(m);
  }
  return own;
}

// --- report -----------------------------------------------------------------------------------------------------------

// "k3,v2 x2, k2,v2" for the layers of a group.
std::string ChosenText(const eval::Policy& policy, const eval::LayerGroup& group) {
  std::string text;
  for (int layer = group.first; layer <= group.last;) {
    const LevelPair pair = policy[static_cast<size_t>(layer)];
    int count = 0;
    for (; layer <= group.last && policy[static_cast<size_t>(layer)] == pair; ++layer) ++count;
    text += fmt::format("{}{} {}{}", text.empty() ? "" : "; ", eval::KeyLevels()[pair.k].name,
                        eval::ValueLevels()[pair.v].name, count > 1 ? fmt::format(" x{}", count) : "");
  }
  return text;
}

Json GroupsJson(const Measured& m, const eval::Policy& policy) {
  Json groups = Json::array();
  for (size_t g = 0; g < m.sensitivity.groups.size(); ++g) {
    const eval::LayerGroup& group = m.sensitivity.groups[g];
    Json entry = {{"layers", LayersText(group)}};
    for (const Side side : kSides) {
      const PairedLoss& loss = (side == Side::kKey ? m.key_losses : m.value_losses)[g];
      entry[SideName(side)] = {
          {"loss", loss.mean},
          {"loss_se", loss.standard_error},
          {"share", (side == Side::kKey ? m.sensitivity.key_shares : m.sensitivity.value_shares)[g]}};
    }
    entry["chosen"] = ChosenText(policy, group);
    groups.push_back(std::move(entry));
  }
  return groups;
}

Json LevelsJson(const eval::Sensitivity& sensitivity) {
  Json levels;
  for (const Side side : kSides) {
    const std::vector<double>& losses = side == Side::kKey ? sensitivity.key_losses : sensitivity.value_losses;
    for (size_t i = 0; i < losses.size(); ++i)
      levels[SideName(side)].push_back({{"level", eval::Levels(side)[i].name}, {"loss", losses[i]}});
  }
  return levels;
}

void CheckOptions(Options& options, const eval::ModelShape& shape) {
  eval::WindowChoice& w = options.choice;
  if (shape.trained_context > 0 && w.window > shape.trained_context)
    throw UsageError(fmt::format("--window {}: the model was trained for {} tokens. Give {} or less.", w.window,
                                 shape.trained_context, shape.trained_context));
  // A page is sealed when a whole one stands behind it: before that there is nothing to see.
  if (w.window < 4 * kPageTokens)
    throw UsageError(fmt::format("--window {}: in windows of less than {} tokens too little is quantized to choose by.",
                                 w.window, 4 * kPageTokens));
  w.first = 2 * kPageTokens;
  if (options.threads == 0) options.threads = NumProcessors();
  const std::filesystem::path model = options.model;
  if (options.out.empty()) options.out = model.stem().string() + ".tune";
  if (options.recipe.empty()) options.recipe = fmt::format("{}/recipe-{:g}.json", options.out, options.bits);
  if (!options.recipe.ends_with(".json"))
    throw UsageError(fmt::format("-o {}: the name of a recipe file ends in .json.", options.recipe));
}

void Tune(Options options, const Invocation& invocation) {
  const eval::ModelShape shape = eval::ReadModelShape(options.model);
  const eval::PolicyCost cost(shape);
  try {
    eval::CheckBudget(cost, options.bits);
  } catch (const Error& e) {
    throw UsageError(fmt::format("--bits: {}", e.what()));
  }
  CheckOptions(options, shape);
  const std::string text = ReadTextFile(options.text);
  const eval::WindowChoice& w = options.choice;
  const Json settings = {{"evaluation", "tune"},      {"model", ModelSettings(options.model)},
                         {"text", Fingerprint(text)}, {"window", w.window},
                         {"first", w.first},          {"step", w.step}};
  Progress progress(options.quiet);
  if (OpenRunFolder(options.out, settings)) progress.Line(fmt::format("using what is in '{}'", options.out));
  CatchInterrupts();
  eval::ReferenceFile reference =
      eval::ReferenceFile::Create(options.out, std::ssize(eval::WindowPositions(w)) *
                                                   std::max<int64_t>(shape.vocabulary, 1) * int64_t{sizeof(float)});
  const Run run{options, text, progress, reference};

  const std::vector<eval::LayerGroup> groups = eval::MakeGroups(cost, options.groups);
  std::map<std::string, std::string> labels;
  const Names choosing = ChoosingCaches(cost, groups, labels);
  const Measured measured =
      SensitivityOf(cost, groups, Measure(run, choosing, 0, options.choosing_windows(), labels, "to choose"));
  const eval::Policy policy = eval::ChoosePolicy(cost, measured.sensitivity, options.bits);
  const Recipe recipe = eval::PolicyRecipe(policy);
  const std::string tuned = ToText(recipe);
  const double bits = cost.Bits(policy);

  Names confirming = {kReference};
  AddOnce(confirming, tuned);
  for (const Rival& r : Rivals(cost, measured.sensitivity, bits, options.bits)) AddOnce(confirming, r.text);
  const std::vector<Json> confirmed =
      Measure(run, confirming, options.choosing_windows(), w.windows, {{tuned, "tuned"}}, "to confirm");
  Json results = SummarizeAccuracy(confirming, confirmed, w.windows, /*with_reference=*/true);
  Json candidates = Json::array();
  for (Json& r : results) {
    if (r.at("recipe") == kReference) continue;
    r["bits"] = cost.Bits(ParseRecipe(r.at("recipe").get<std::string>()));
    candidates.push_back(r);
  }
  const Json gain = Gain(confirmed, tuned, candidates, options.bits);
  const std::string used = gain.at("use");

  Json report = {{"evaluation", "tune"},
                 {"model", options.model},
                 {"text", options.text},
                 {"bits_asked", options.bits},
                 {"bits", bits},
                 {"tuned", tuned},
                 {"recipe", used},
                 {"recipe_file", options.recipe},
                 {"window", w.window},
                 {"windows_to_choose", options.choosing_windows()},
                 {"windows_to_confirm", w.windows - options.choosing_windows()},
                 {"first", w.first},
                 {"step", w.step},
                 {"threads", options.threads},
                 {"machine", MachineText()},
                 {"commit", CommitText()},
                 {"command", CommandText(invocation.arguments)},
                 {"levels", LevelsJson(measured.sensitivity)},
                 {"groups", GroupsJson(measured, policy)},
                 {"predicted_loss", eval::PredictedLoss(policy, measured.sensitivity)},
                 {"gain", gain},
                 {"confirmed", {{"evaluation", "kld"}, {"results", results}}}};
  const std::string json = report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  WriteAtomically({{options.recipe, ToJson(ParseRecipe(used)) + "\n"},
                   {fmt::format("{}/tune-{:g}.json", options.out, options.bits), json}});
  if (options.json) {
    fmt::print("{}", json);
    return;
  }
  for (Json& r : report["confirmed"]["results"]) {
    if (r.at("recipe") == tuned) r["recipe"] = "tuned";
  }
  fmt::print(
      "Losses in {} windows of {} tokens (KL divergence over that of the finest widths), and what was chosen\n\n{}\n"
      "In the other {} windows\n\n{}\n{}\nWritten: {}\nAs text: {}\n",
      options.choosing_windows(), w.window, TuneGroups(report), w.windows - options.choosing_windows(),
      AccuracyTable(report.at("confirmed")), TuneVerdict(report), options.recipe, used);
}

}  // namespace

void AddTune(CLI::App& app, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  CLI::App* command = app.add_subcommand("tune", kDescription);
  command->footer(kFooter);
  command->add_option("model,-m,--model", options->model, "Model, a .gguf file")->required();
  command->add_option("text,-f,--file", options->text, "Text to measure with, UTF-8, like what the model is used for")
      ->required();
  command->add_option("--bits", options->bits, "Bits per value at most, of sealed pages with all their parameters")
      ->required()
      ->check(CLI::PositiveNumber);
  command->add_option("-o,--output", options->recipe,
                      "Recipe file to write (.json); by default in the folder of --out");
  command->add_option("--out", options->out,
                      "Folder for measurements and report; by default the model's name with .tune");
  command->add_option("--window", options->choice.window, "Tokens of a window, read from an empty cache")
      ->capture_default_str();
  command
      ->add_option("--windows", options->choice.windows,
                   "Windows of the text: the first half to choose by, the others to confirm")
      ->check(CLI::Range(int64_t{2}, int64_t{1} << 20))
      ->capture_default_str();
  command->add_option("--step", options->choice.step, "Look at every so many positions")
      ->check(CLI::PositiveNumber)
      ->capture_default_str();
  command->add_option("--groups", options->groups, "Groups of neighbouring layers that are measured together")
      ->check(CLI::Range(1, 1024))
      ->capture_default_str();
  command->add_option("-t,--threads", options->threads, "Threads; by default all processors")
      ->check(CLI::Range(1, 1024));
  command->add_flag("--json", options->json, "Print the report as JSON");
  command->add_flag("-q,--quiet", options->quiet, "No progress");
  command->add_flag("-v,--verbose", options->verbose, "Show llama.cpp's messages");
  command->callback([options, &invocation] { Tune(*options, invocation); });
}

}  // namespace kvrazor::apps
