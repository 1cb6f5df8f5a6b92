// kvrazor eval analyze: norms of a model's keys and values, token by token, and what their imbalance costs.
#include <fmt/format.h>

#include <algorithm>
#include <limits>
#include <memory>

#include "apps/atomic_files.h"
#include "apps/eval.h"
#include "apps/eval_analyze_plots.h"
#include "apps/failures.h"
#include "apps/html.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/png_plot.h"
#include "apps/progress.h"
#include "apps/read_text.h"
#include "apps/text_table.h"
#include "eval/model.h"
#include "eval/model_shape.h"
#include "eval/token_norms.h"

namespace kvrazor::apps {
namespace {

constexpr int kBits = 2;

constexpr char kDescription[] =
    "How unequal the norms of keys and values are, and what that costs.\n"
    "Reads a text with the 16-bit cache and looks at the keys (after RoPE) and values of every layer: norms of the "
    "tokens, their "
    "spread inside groups of 32 tokens (largest to median, median to smallest), tokens that stand out, and the error "
    "of 2-bit "
    "keys with one scale per channel and group: as they are, with a Hadamard rotation of each head, with each token's "
    "norm taken "
    "out first, and with both (OScaR, arXiv:2605.19660). The error is the mean over tokens of |error|^2 / |key|^2.";
constexpr char kFooter[] =
    "EXAMPLES\n"
    "  kvrazor eval analyze -m model.gguf -f book.txt\n"
    "  kvrazor eval analyze -m model.gguf -f book.txt -c 2048 --out results\n"
    "  kvrazor eval analyze -m model.gguf -f book.txt --out results --layers 0,12 --head 1\n\n"
    "FILES\n"
    "  With --out DIR: DIR/analyze.json (every layer and head), DIR/layer_N_*.png (norm per token; channel by token "
    "maps of "
    "keys, keys\n"
    "  rotated with their norms taken out, and values) and DIR/index.html (table and all plots; needs nothing "
    "else).\n\n"
    "EXIT STATUS\n"
    "  0 done; 1 failed; 2 wrong usage; 130 interrupted.";

struct Variant {
  const char* name;
  const char* label;
  eval::KeyTreatment treatment;
};
constexpr Variant kVariants[] = {{"plain", "as they are", {}},
                                 {"rotated", "rotated", {.rotate = true}},
                                 {"scaled", "norm taken out", {.token_scale = true}},
                                 {"rotated_scaled", "both", {.rotate = true, .token_scale = true}}};

struct Options {
  std::string model, text, out;
  int64_t context = 1024;
  std::vector<int> layers;
  int head = -1;  // all
  int threads = 0;
  bool json = false, quiet = false, verbose = false;
};

Json SpreadJson(const eval::NormSpread& s) {
  return {{"max_over_median", s.max_over_median},
          {"max_over_median_worst", s.max_over_median_worst},
          {"median_over_min", s.median_over_min},
          {"median_over_min_worst", s.median_over_min_worst}};
}

Json SideJson(const eval::StoredRows& rows) {
  const std::vector<double> norms = eval::TokenNorms(rows, -1);
  Json side = {{"all_heads", SpreadJson(eval::SpreadOf(norms))}, {"outliers", eval::Outliers(norms)}, {"norms", norms}};
  for (int64_t head = 0; head < rows.num_heads; ++head)
    side["heads"].push_back(SpreadJson(eval::SpreadOf(eval::TokenNorms(rows, head))));
  return side;
}

std::string ErrorText(const Json& layer, const char* variant) {
  const Json& value = layer.at("key_error").at(variant);
  return value.is_null() ? "-" : fmt::format("{:.4f}", value.get<double>());
}

std::vector<std::string> Headings() {
  std::vector<std::string> headings = {"layer", "K max/median", "worst",     "K median/min",
                                       "worst", "V median/min", "K outliers"};
  for (const Variant& v : kVariants) headings.push_back(fmt::format("error {}", v.label));
  return headings;
}

std::vector<std::vector<std::string>> Rows(const Json& report) {
  std::vector<std::vector<std::string>> rows;
  const auto number = [](const Json& spread, const char* field) {
    return fmt::format("{:.2f}", spread.at(field).get<double>());
  };
  for (const Json& layer : report.at("layers")) {
    const Json& k = layer.at("keys").at("all_heads");
    std::vector<std::string> row = {fmt::format("{}", layer.at("layer").get<int>()),
                                    number(k, "max_over_median"),
                                    number(k, "max_over_median_worst"),
                                    number(k, "median_over_min"),
                                    number(k, "median_over_min_worst"),
                                    number(layer.at("values").at("all_heads"), "median_over_min"),
                                    fmt::format("{}", layer.at("keys").at("outliers").size())};
    for (const Variant& v : kVariants) row.push_back(ErrorText(layer, v.name));
    rows.push_back(row);
  }
  return rows;
}

std::string ErrorPlot(const Json& report) {
  std::vector<Series> series;
  for (size_t v = 0; v < std::size(kVariants); ++v) {
    Series s{.name = kVariants[v].label, .colour = SeriesColour(v), .points = {}};
    for (const Json& layer : report.at("layers")) {
      if (const Json& e = layer.at("key_error").at(kVariants[v].name); e.is_number())
        s.points.emplace_back(layer.at("layer").get<double>(), e.get<double>());
    }
    series.push_back(std::move(s));
  }
  return Card("error of 2-bit keys by layer",
              PlotSvg(series, {.label = "layer", .logarithmic = false, .format = {}},
                      {.label = "|error|^2 / |key|^2", .logarithmic = true, .format = {}}, /*lines=*/true));
}

std::string AnalyzeHtml(const Json& report, const Json& plots) {
  const std::string path = report.at("model");
  const std::string model = fmt::format("{}", Escaped(path.substr(path.find_last_of('/') + 1)));
  std::string html = PageHead("Token norms of " + model) +
                     fmt::format("<h1>{}: norms of {} tokens</h1>\n<p class=\"faint\">Text: {}.</p>\n", model,
                                 report.at("context").get<int64_t>(), Escaped(report.at("text"))) +
                     HtmlTable(Headings(), Rows(report)) + "<h2>Plots</h2>\n<div class=\"plots\">\n" +
                     ErrorPlot(report);
  html += "</div>\n<h2>Layers</h2>\n";
  for (const Json& plot : plots)
    html += fmt::format("<p><img src=\"data:image/png;base64,{}\" alt=\"{}\" style=\"max-width:100%\"></p>\n",
                        plot.at("png").get<std::string>(), Escaped(plot.at("title")));
  return html + fmt::format(
                    "<h2>How it was measured</h2>\n<p>Spreads: inside groups of 32 tokens, mean and worst "
                    "group, over all heads. "
                    "Outliers: tokens below half or above twice the median norm. Error: 2-bit codes between minimum "
                    "and maximum of each "
                    "channel over 32 tokens, mean over tokens of |error|&sup2; / |key|&sup2;.</p>\n<p "
                    "class=\"faint\">{}, {} threads. Commit "
                    "{}.</p>\n<p><code>{}</code></p>\n</body></html>\n",
                    Escaped(report.at("machine")), report.at("threads").get<int>(), Escaped(report.at("commit")),
                    Escaped(report.at("command")));
}

void CheckPlaces(const Options& options) {
  if (options.layers.empty() && options.head < 0) return;
  if (options.out.empty()) throw UsageError("--layers and --head choose what is drawn: say with --out DIR where to.");
  const eval::ModelShape shape = eval::ReadModelShape(options.model);
  for (const int layer : options.layers) {
    if (layer >= static_cast<int>(shape.layers.size()))
      throw UsageError(fmt::format("--layers {}: the model has layers 0 to {}.", layer, shape.layers.size() - 1));
  }
  int heads = shape.layers.front().num_kv_heads;
  for (const int layer : options.layers) heads = std::min(heads, shape.layers[static_cast<size_t>(layer)].num_kv_heads);
  if (options.head >= heads)
    throw UsageError(fmt::format("--head {}: there are key and value heads 0 to {}.", options.head, heads - 1));
}

void Analyze(Options options, const Invocation& invocation) {
  CheckPlaces(options);
  if (options.threads == 0) options.threads = NumProcessors();
  const std::string text = ReadTextFile(options.text);
  if (!options.out.empty()) PrepareFolder(options.out);
  CatchInterrupts();
  Progress progress(options.quiet);
  const Json measured = RunWorker(
      {{"kind", "analyze"},
       {"model", options.model},
       {"text", text},
       {"context", options.context},
       {"threads", options.threads},
       {"plots", !options.out.empty()},
       {"plot_layers", options.layers},
       {"plot_head", options.head},
       {"verbose", options.verbose}},
      -1, [&](const std::string& stage, int64_t done, int64_t total) { progress.Update(stage, done, total); });
  progress.Done();
  const Json report = {{"evaluation", "analyze"},
                       {"mode", "16-bit cache, keys and values seen through the evaluation callback"},
                       {"model", options.model},
                       {"text", options.text},
                       {"context", options.context},
                       {"threads", options.threads},
                       {"machine", MachineText()},
                       {"commit", CommitText()},
                       {"command", CommandText(invocation.arguments)},
                       {"layers", measured.at("layers")}};
  const std::string json = report.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!options.out.empty()) {
    std::vector<std::pair<std::string, std::string>> files = {
        {options.out + "/analyze.json", json},
        {options.out + "/index.html", AnalyzeHtml(report, measured.at("plots"))}};
    for (const Json& plot : measured.at("plots"))
      files.emplace_back(options.out + "/" + plot.at("file").get<std::string>(), FromBase64(plot.at("png")));
    WriteAtomically(files);
  }
  if (options.json) {
    fmt::print("{}", json);
    return;
  }
  TextTable table(Headings());
  for (std::vector<std::string>& row : Rows(report)) table.Add(std::move(row));
  fmt::print("{}", table.Text());
  if (!options.out.empty())
    fmt::print("\nWritten: {0}/analyze.json, {0}/index.html and {1} plots {0}/*.png\n", options.out,
               measured.at("plots").size());
}

}  // namespace

Json AnalyzeJob(const Json& job, const OnProgress& progress) {
  const int64_t tokens_wanted = job.at("context");
  progress("loading", 0, 1);
  const eval::ModelPtr model = eval::LoadModel(job.at("model"));
  std::vector<llama_token> tokens =
      eval::Tokenize(model.get(), job.at("text").get<std::string>(), /*add_first=*/true, /*special=*/false);
  if (std::ssize(tokens) < tokens_wanted)
    throw UsageError(fmt::format("-c {}: the text has only {} tokens. Give a longer text, or -c {} or less.",
                                 tokens_wanted, tokens.size(), tokens.size()));
  tokens.resize(static_cast<size_t>(tokens_wanted));
  eval::KeyCapture capture;
  const eval::ContextPtr context = eval::MakeContext(model.get(), eval::ParseCacheChoice("f16"),
                                                     {.context = tokens_wanted,
                                                      .threads = job.at("threads"),
                                                      .on_node = eval::KeyCapture::OnNode,
                                                      .on_node_data = &capture});
  eval::Feed(context.get(), tokens, 0, [&](int64_t done) { progress("reading", done, tokens_wanted); });
  llama_synchronize(context.get());
  if (capture.keys().empty())
    throw Error(
        "no keys and values could be seen: this model's cache is not llama.cpp's usual one (recurrent or compressed).");
  Json layers = Json::array();
  for (const auto& [layer, keys] : capture.keys()) {
    progress("quantizing keys", std::ssize(layers), std::ssize(capture.keys()));
    const auto values = capture.values().find(layer);
    if (values == capture.values().end()) throw Error(fmt::format("layer {} stores keys but no values.", layer));
    Json entry = {{"layer", layer},
                  {"num_kv_heads", keys.num_heads},
                  {"head_dim", keys.head_dim},
                  {"keys", SideJson(keys)},
                  {"values", SideJson(values->second)}};
    for (const Variant& v : kVariants) {
      const bool possible = !v.treatment.rotate || eval::CanRotate(keys.head_dim);
      entry["key_error"][v.name] = possible ? Json(eval::KeyError(keys, v.treatment, kBits)) : Json(nullptr);
    }
    layers.push_back(std::move(entry));
  }
  Json plots = Json::array();
  if (job.at("plots").get<bool>()) {
    std::vector<int> shown = job.at("plot_layers");
    if (shown.empty()) shown = LayersWorthShowing(layers);
    for (const int layer : shown) {
      progress("drawing", std::ssize(plots), 4 * std::ssize(shown));
      const auto keys = capture.keys().find(layer);
      if (keys == capture.keys().end()) throw UsageError(fmt::format("--layers {}: this layer stores no keys.", layer));
      for (Json& plot : LayerPlots(layer, job.at("plot_head"), keys->second, capture.values().at(layer)))
        plots.push_back(std::move(plot));
    }
  }
  return {{"layers", layers}, {"plots", plots}};
}

void AddEvalAnalyze(CLI::App& eval, Invocation& invocation) {
  auto options = std::make_shared<Options>();
  CLI::App* command = eval.add_subcommand("analyze", kDescription);
  command->footer(kFooter);
  command->add_option("-m,--model", options->model, "Model, a .gguf file")->required();
  command->add_option("-f,--file", options->text, "Text to read, UTF-8")->required();
  command->add_option("-c,--context", options->context, "Tokens to read")
      ->check(CLI::Range(int64_t{eval::kNormGroup}, int64_t{1} << 20))
      ->capture_default_str();
  command
      ->add_option("--layers", options->layers,
                   "Layers to draw, from 0; by default the first, the last and the four whose keys' norms differ most")
      ->delimiter(',')
      ->check(CLI::NonNegativeNumber);
  command->add_option("--head", options->head, "Key and value head to draw, from 0; by default all")
      ->check(CLI::NonNegativeNumber);
  command->add_option("-t,--threads", options->threads, "Threads; by default all processors")
      ->check(CLI::Range(1, 1024));
  command->add_option("--out", options->out, "Folder for analyze.json, index.html and plots");
  command->add_flag("--json", options->json, "Print JSON");
  command->add_flag("-q,--quiet", options->quiet, "No progress");
  command->add_flag("-v,--verbose", options->verbose, "Show llama.cpp's messages");
  command->callback([options, &invocation] { Analyze(*options, invocation); });
}

}  // namespace kvrazor::apps
