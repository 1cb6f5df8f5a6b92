#include <fmt/format.h>

#include "apps/eval_accuracy.h"
#include "apps/html.h"

namespace kvrazor::apps {
namespace {

double Number(const Json& record, const char* field) { return record.at(field).get<double>(); }

std::string Table(const Json& report, bool with_reference) {
  std::vector<std::string> headings = {"cache", "mode", "bits, page", "bits, all", "perplexity"};
  if (with_reference)
    headings.insert(headings.end(),
                    {"change", "KLD mean", "+-", "median", "99 %", "99.9 %", "largest", "same top", "worst token"});
  std::vector<std::vector<std::string>> rows;
  for (const Json& r : report.at("results")) {
    std::vector<std::string> row = {
        r.at("recipe"), r.at("mode"), fmt::format("{:.2f}", Number(r, "page_bits_per_value")),
        fmt::format("{:.2f}", Number(r, "bits_per_value")), fmt::format("{:.3f}", Number(r, "ppl"))};
    if (with_reference) {
      row.push_back(fmt::format("{:+.2f} %", 100 * Number(r, "ppl_change")));
      for (const char* field : {"kld_mean", "kld_se", "kld_median", "kld_p99", "kld_p999", "kld_max"})
        row.push_back(fmt::format("{:.4g}", Number(r, field)));
      row.push_back(fmt::format("{:.1f} %", 100 * Number(r, "same_top1")));
      row.push_back(fmt::format("{} of window {}", r.at("worst").at("position").get<int64_t>(),
                                r.at("worst").at("window").get<int64_t>() + 1));
    }
    rows.push_back(row);
  }
  return HtmlTable(headings, rows);
}

// One series a cache over the buckets' middles.
std::string ByContext(const Json& report, const char* field, const std::string& label, bool logarithmic) {
  std::vector<Series> series;
  size_t index = 0;
  for (const Json& r : report.at("results")) {
    Series s{.name = r.at("recipe"), .colour = SeriesColour(index++), .points = {}};
    for (const Json& bucket : r.at("buckets"))
      s.points.emplace_back((Number(bucket, "from") + Number(bucket, "to")) / 2, Number(bucket, field));
    series.push_back(std::move(s));
  }
  const std::string svg = PlotSvg(series, {.label = "tokens before", .logarithmic = false, .format = {}},
                                  {.label = label, .logarithmic = logarithmic, .format = {}}, /*lines=*/true);
  return svg.empty() ? "" : Card(label + " by context", svg);
}

std::string OverBits(const Json& report, const char* field, const std::string& label) {
  std::vector<Series> series;
  size_t index = 0;
  for (const Json& r : report.at("results"))
    series.push_back({.name = r.at("recipe"),
                      .colour = SeriesColour(index++),
                      .points = {{Number(r, "page_bits_per_value"), Number(r, field)}}});
  const std::string svg =
      PlotSvg(series, {.label = "bits per value of a sealed page", .logarithmic = false, .format = {}},
              {.label = label, .logarithmic = true, .format = {}}, /*lines=*/false);
  return svg.empty() ? "" : Card(label + " and bits", svg);
}

}  // namespace

std::string AccuracyHtml(const Json& report) {
  const bool with_reference = report.at("evaluation") == "kld";
  const std::string path = report.at("model");
  const std::string model = Escaped(path.substr(path.find_last_of('/') + 1));
  std::string html = PageHead((with_reference ? "KL divergence of " : "Perplexity of ") + model);
  html +=
      fmt::format("<h1>{}: {} windows of {} tokens</h1>\n<p class=\"faint\">Text: {}.{}</p>\n", model,
                  report.at("windows").get<int64_t>(), report.at("window").get<int64_t>(), Escaped(report.at("text")),
                  !with_reference ? ""
                  : report.at("reference") == "f16"
                      ? " Everything is compared with llama.cpp's 16-bit cache over the same windows."
                      : " Everything is compared with kvrazor's own 16-bit cache over the same windows.");
  html += Table(report, with_reference);
  html += "<h2>Plots</h2>\n<div class=\"plots\">\n";
  if (with_reference) {
    html += OverBits(report, "kld_mean", "KL divergence, mean");
    html += OverBits(report, "kld_p999", "KL divergence, 99.9 %");
    html += OverBits(report, "kld_max", "KL divergence, largest");
    html += ByContext(report, "kld_mean", "KL divergence, mean", true);
    html += ByContext(report, "kld_p999", "KL divergence, 99.9 %", true);
    html += ByContext(report, "kld_max", "KL divergence, largest", true);
    html += ByContext(report, "same_top1", "same most likely token", false);
  }
  html += ByContext(report, "ppl", "perplexity", false);
  html += fmt::format(
      "</div>\n<h2>How it was measured</h2>\n<p>Each window is read from an empty cache, 128 tokens at a time, so that "
      "all but "
      "the newest tokens are read back from the cache as in decoding.{} Looked at: every {} positions from {} on. "
      "Bits, "
      "page: of "
      "a sealed page with all its parameters; bits, all: every byte of the cache at the end of a window, the newest "
      "tokens' 16 "
      "bits and tables too. Mode \"packed\": kvrazor's cache; \"llama.cpp\": llama.cpp's own; "
      "\"shadow\": llama.cpp's own, overwritten with dequantized values, bits computed. KL divergence in nats, "
      "from f16; +-: standard error, positions taken as "
      "independent.</p>\n<p class=\"faint\">{}, {} threads. Commit {}.</p>\n<p><code>{}</code></p>\n</body></html>\n",
      report.value("newest_page", "") == "sealed" ? " Each of these 128 tokens was read twice, so that the page before "
                                                    "them is quantized as well (--seal-newest)."
                                                  : "",
      report.at("step").get<int64_t>(), report.at("first").get<int64_t>(), Escaped(report.at("machine")),
      report.at("threads").get<int>(), Escaped(report.at("commit")), Escaped(report.at("command")));
  return html;
}

}  // namespace kvrazor::apps
