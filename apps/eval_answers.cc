#include "apps/eval_answers.h"

#include <fmt/format.h>

#include <cmath>
#include <limits>

#include "apps/atomic_files.h"
#include "apps/failures.h"
#include "apps/html.h"
#include "apps/interrupt.h"
#include "apps/machine.h"
#include "apps/text_table.h"

namespace kvrazor::apps {
namespace {

double NumberOrNan(const Json& value) {
  return value.is_number() ? value.get<double>() : std::numeric_limits<double>::quiet_NaN();
}

std::string Score(const Json& value) {
  const double score = NumberOrNan(value);
  return std::isnan(score) ? "-" : fmt::format("{:.2f}", score);
}

std::vector<std::string> TaskNames(const Json& report) {
  std::vector<std::string> names;
  for (const Json& task : report.at("results").front().at("tasks")) names.push_back(task.at("task"));
  return names;
}

std::vector<std::vector<std::string>> Rows(const Json& report) {
  std::vector<std::vector<std::string>> rows;
  for (const Json& r : report.at("results")) {
    std::vector<std::string> row = {r.at("recipe"), r.at("mode"),
                                    fmt::format("{:.2f}", r.at("page_bits_per_value").get<double>()),
                                    Score(r.at("average"))};
    for (const Json& task : r.at("tasks")) row.push_back(Score(task.at("score")));
    rows.push_back(row);
  }
  return rows;
}

// Scores by length (columns) and depth (rows), in percent.
std::string DepthMap(const Json& cells) {
  std::map<int64_t, size_t> columns;
  std::map<double, size_t> rows;
  for (const Json& cell : cells) {
    columns.try_emplace(cell.at("length"), 0);
    rows.try_emplace(cell.at("depth"), 0);
  }
  HeatMap map{.columns = {},
              .rows = {},
              .values = {},
              .low = 0,
              .high = 100,
              .format = [](double v) { return fmt::format("{:.0f}", v); },
              .column_label = "tokens",
              .row_label = "depth"};
  for (auto& [length, index] : columns) {
    index = map.columns.size();
    map.columns.push_back(fmt::format("{}", length));
  }
  for (auto& [depth, index] : rows) {
    index = map.rows.size();
    map.rows.push_back(fmt::format("{:.0f} %", 100 * depth));
  }
  map.values.assign(rows.size(), std::vector<double>(columns.size(), std::numeric_limits<double>::quiet_NaN()));
  for (const Json& cell : cells)
    map.values[rows.at(cell.at("depth"))][columns.at(cell.at("length"))] = cell.at("score");
  return HeatMapSvg(map);
}

std::string ByLength(const Json& report, size_t task) {
  std::vector<Series> series;
  size_t index = 0;
  for (const Json& r : report.at("results")) {
    Series s{.name = r.at("recipe"), .colour = SeriesColour(index++), .points = {}};
    if (!r.at("tasks")[task].contains("lengths")) return "";
    for (const Json& length : r.at("tasks")[task].at("lengths"))
      s.points.emplace_back(length.at("length"), length.at("score"));
    series.push_back(std::move(s));
  }
  if (series.front().points.size() < 2) return "";
  return PlotSvg(series, {.label = "tokens", .logarithmic = false, .format = {}},
                 {.label = "score", .logarithmic = false, .format = {}}, true);
}

std::string Plots(const Json& report) {
  std::string html;
  const std::vector<std::string> tasks = TaskNames(report);
  for (size_t t = 0; t < tasks.size(); ++t) {
    if (const std::string svg = ByLength(report, t); !svg.empty()) html += Card(tasks[t], svg);
    for (const Json& r : report.at("results")) {
      const Json& task = r.at("tasks")[t];
      if (task.contains("cells"))
        html += Card(tasks[t] + ", " + r.at("recipe").get<std::string>(), DepthMap(task.at("cells")));
    }
  }
  return html.empty() ? "" : "<h2>Plots</h2>\n<div class=\"plots\">\n" + html + "</div>\n";
}

std::string Buckets(const Json& report) {
  if (!report.at("results").front().at("tasks").front().contains("buckets")) return "";
  std::vector<std::string> headings = {"cache", "bucket"};
  for (const std::string& task : TaskNames(report)) headings.push_back(task);
  std::vector<std::vector<std::string>> rows;
  for (const Json& r : report.at("results")) {
    for (const auto& [bucket, value] : r.at("tasks").front().at("buckets").items()) {
      std::vector<std::string> row = {r.at("recipe"), bucket};
      for (const Json& task : r.at("tasks")) row.push_back(Score(task.at("buckets").at(bucket)));
      rows.push_back(row);
    }
  }
  return "<h2>By length</h2>\n" + HtmlTable(headings, rows);
}

}  // namespace

std::string FolderName(const std::string& cache) {
  std::string name = cache;
  for (char& c : name) {
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '.' && c != '_' && c != '-') c = '_';
  }
  return name == cache && name.front() != '.' ? name : name + "-" + Fingerprint(cache).substr(0, 6);
}

std::vector<CacheAnswers> AskAll(const ModelOptions& options, const std::vector<std::string>& caches, Json job,
                                 const Json& settings) {
  Progress progress(options.quiet);
  if (!options.out.empty() && OpenRunFolder(options.out, settings))
    progress.Line(fmt::format("going on with the run in '{}'", options.out));
  CatchInterrupts();
  job["kind"] = "answers";
  job["model"] = options.model;
  job["threads"] = options.threads == 0 ? NumProcessors() : options.threads;
  job["verbose"] = options.verbose;
  std::vector<CacheAnswers> all;
  for (const std::string& cache : caches) {
    job["cache"] = cache;
    job["require"] = options.require && cache != "f16";
    job["folder"] = "";
    if (!options.out.empty()) {
      job["folder"] = options.out + "/" + FolderName(cache);
      PrepareFolder(job.at("folder"));
    }
    const std::string label = fmt::format("[{}/{}] {}: ", all.size() + 1, caches.size(), cache);
    const Json result = RunWorker(job, -1, [&](const std::string& stage, int64_t done, int64_t total) {
      progress.Update(label + stage, done, total);
    });
    CacheAnswers answers{
        .cache = cache, .mode = result.at("mode"), .page_bits = result.at("page_bits_per_value"), .by_task = {}};
    for (const auto& [task, lines] : result.at("by_task").items())
      answers.by_task[task] = lines.get<std::vector<Json>>();
    all.push_back(std::move(answers));
  }
  progress.Done();
  return all;
}

Json ReportHead(const std::string& evaluation, const ModelOptions& options, const Invocation& invocation) {
  return {{"evaluation", evaluation},
          {"model", options.model},
          {"threads", options.threads == 0 ? NumProcessors() : options.threads},
          {"machine", MachineText()},
          {"commit", CommitText()},
          {"command", CommandText(invocation.arguments)}};
}

std::string AnswersTable(const Json& report) {
  std::vector<std::string> headings = {"<cache", "<mode", "page bits", "average"};
  for (const std::string& task : TaskNames(report)) headings.push_back(task);
  TextTable table(headings);
  for (std::vector<std::string>& row : Rows(report)) table.Add(std::move(row));
  return table.Text();
}

std::string AnswersHtml(const Json& report, const std::string& how) {
  const std::string path = report.at("model");
  const std::string model = Escaped(path.substr(path.find_last_of('/') + 1)), name = report.at("evaluation");
  std::vector<std::string> headings = {"cache", "mode", "bits, page", "average"};
  for (const std::string& task : TaskNames(report)) headings.push_back(task);
  return PageHead(name + " of " + model) + fmt::format("<h1>{}: {}</h1>\n", model, Escaped(name)) +
         HtmlTable(headings, Rows(report)) + Buckets(report) + Plots(report) +
         fmt::format(
             "<h2>How it was measured</h2>\n<p>{} Answers are written greedily. Bits, page: of a sealed page with all "
             "its "
             "parameters.</p>\n<p class=\"faint\">{}, {} threads. Commit "
             "{}.</p>\n<p><code>{}</code></p>\n</body></html>\n",
             Escaped(how), Escaped(report.at("machine")), report.at("threads").get<int>(), Escaped(report.at("commit")),
             Escaped(report.at("command")));
}

void ShowAnswers(const Json& report, const ModelOptions& options, const std::string& how,
                 const std::vector<std::string>& fail_if) {
  std::vector<Limit> limits;
  for (const std::string& text : fail_if) limits.push_back(ParseLimit(text, {"average"}));
  const std::string name = report.at("evaluation");
  const std::string json = report.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  if (!options.out.empty())
    WriteAtomically({{fmt::format("{}/{}.json", options.out, name), json},
                     {options.out + "/index.html", AnswersHtml(report, how)}});
  if (options.json) {
    fmt::print("{}", json);
  } else {
    fmt::print("{}", AnswersTable(report));
    if (!options.out.empty()) fmt::print("\nWritten: {0}/{1}.json and {0}/index.html\n", options.out, name);
  }
  std::string failed;
  for (const Json& r : report.at("results")) {
    for (const Limit& limit : limits) {
      const double value = NumberOrNan(r.at("average"));
      if (r.at("recipe") != "f16" && limit.FailsAt(value))
        failed += fmt::format("\n  {}: average is {:.6g} ('{}')", r.at("recipe").get<std::string>(), value, limit.text);
    }
  }
  if (!failed.empty()) throw RequirementError("--fail-if holds:" + failed);
}

}  // namespace kvrazor::apps
