#include <fmt/format.h>

#include <map>

#include "apps/eval_accuracy.h"
#include "apps/text_table.h"
#include "eval/distribution.h"
#include "eval/text_windows.h"

namespace kvrazor::apps {
namespace {

using Positions = std::vector<eval::PositionAgreement>;

Positions PositionsOf(const Json& measurement, bool with_reference) {
  Positions positions;
  for (size_t i = 0; i < measurement.at("position").size(); ++i) {
    eval::PositionAgreement p{.position = measurement.at("position")[i], .nll = measurement.at("nll")[i]};
    if (with_reference) {
      p.kld = measurement.at("kld")[i];
      p.same_top1 = measurement.at("same")[i].get<int>() != 0;
    }
    positions.push_back(p);
  }
  return positions;
}

Json ToJson(const eval::Agreement& a, bool with_reference) {
  Json json = {{"positions", a.positions}, {"ppl", a.ppl}, {"nll_se", a.nll_se}};
  if (!with_reference) return json;
  json.update(Json{{"kld_mean", a.kld_mean},
                   {"kld_se", a.kld_se},
                   {"kld_median", a.kld_median},
                   {"kld_p99", a.kld_p99},
                   {"kld_p999", a.kld_p999},
                   {"kld_max", a.kld_max},
                   {"same_top1", a.same_top1}});
  return json;
}

Json SummarizeCache(const std::string& cache, const std::vector<const Json*>& measurements, bool with_reference) {
  Positions all;
  std::vector<std::pair<int64_t, int64_t>> places;  // window and its start, for each position
  std::map<int64_t, std::pair<int64_t, Positions>> by_bucket;
  double bits = 0;
  for (const Json* m : measurements) {
    for (const eval::PositionAgreement& p : PositionsOf(*m, with_reference)) {
      const eval::ContextBucket bucket = eval::BucketOf(p.position);
      by_bucket[bucket.from].first = bucket.to;
      by_bucket[bucket.from].second.push_back(p);
      all.push_back(p);
      places.emplace_back(m->at("window"), m->at("start"));
    }
    bits += m->at("bits_per_value").get<double>() / static_cast<double>(measurements.size());
  }
  const eval::Agreement total = eval::Summarize(all);
  const Json& first = *measurements.front();
  Json result = {{"recipe", cache},
                 {"mode", first.at("mode")},
                 {"page_bits_per_value", first.at("page_bits_per_value")},
                 {"bits_per_value", bits},
                 {"f16_layers", first.at("f16_layers")},
                 {"windows", measurements.size()}};
  result.update(ToJson(total, with_reference));
  if (with_reference) {
    const size_t worst = static_cast<size_t>(total.worst_index);
    result["worst"] = {{"window", places[worst].first},
                       {"text_token", places[worst].second + all[worst].position},
                       {"position", all[worst].position},
                       {"kld", all[worst].kld}};
  }
  for (const auto& [from, bucket] : by_bucket) {
    Json entry = {{"from", from}, {"to", bucket.first}};
    entry.update(ToJson(eval::Summarize(bucket.second), with_reference));
    result["buckets"].push_back(entry);
  }
  return result;
}

std::string Kld(const Json& value) {
  const double kld = value;
  return kld == 0      ? "0"
         : kld < 0.001 ? fmt::format("{:.1e}", kld)
         : kld < 1     ? fmt::format("{:.4f}", kld)
                       : fmt::format("{:.2f}", kld);
}

std::string Percent(const Json& value) { return fmt::format("{:.1f} %", 100 * value.get<double>()); }

// Window (from 1) and position of the token with the largest divergence; nothing where all are 0.
std::string WorstPlace(const Json& result) {
  const Json& worst = result.at("worst");
  if (worst.at("kld").get<double>() == 0) return "-";
  return fmt::format("{}:{}", worst.at("window").get<int64_t>() + 1, worst.at("position").get<int64_t>());
}

std::string BucketName(const Json& bucket) {
  const auto kilo = [](int64_t tokens) {
    return tokens % 1024 ? fmt::format("{}", tokens) : fmt::format("{}K", tokens / 1024);
  };
  return kilo(bucket.at("from")) + "-" + kilo(bucket.at("to"));
}

}  // namespace

Json SummarizeAccuracy(const std::vector<std::string>& caches, const std::vector<Json>& measurements, int64_t windows,
                       bool with_reference) {
  Json results = Json::array();
  for (const std::string& cache : caches) {
    std::vector<const Json*> own;
    for (const Json& m : measurements) {
      if (m.at("cache") == cache && m.at("window").get<int64_t>() < windows) own.push_back(&m);
    }
    Json result = SummarizeCache(cache, own, with_reference);
    if (with_reference) {
      const double f16 = results.empty() ? result.at("ppl").get<double>() : results.front().at("ppl").get<double>();
      result["ppl_change"] = result.at("ppl").get<double>() / f16 - 1;
    }
    results.push_back(std::move(result));
  }
  return results;
}

std::string AccuracyTable(const Json& report) {
  const bool with_reference = report.at("evaluation") == "kld";
  std::vector<std::string> headings = {"<cache", "<mode", "page bits", "all bits", "perplexity", "+-"};
  if (with_reference)
    for (const char* heading : {"change", "KLD mean", "+-", "median", "99 %", "99.9 %", "largest", "<at", "same top"})
      headings.push_back(heading);
  TextTable table(headings);
  for (const Json& r : report.at("results")) {
    std::vector<std::string> row = {r.at("recipe"),
                                    r.at("mode"),
                                    fmt::format("{:.2f}", r.at("page_bits_per_value").get<double>()),
                                    fmt::format("{:.2f}", r.at("bits_per_value").get<double>()),
                                    fmt::format("{:.4f}", r.at("ppl").get<double>()),
                                    fmt::format("{:.2f}", r.at("ppl").get<double>() * r.at("nll_se").get<double>())};
    if (with_reference)
      row.insert(row.end(), {fmt::format("{:+.2f} %", 100 * r.at("ppl_change").get<double>()), Kld(r.at("kld_mean")),
                             Kld(r.at("kld_se")), Kld(r.at("kld_median")), Kld(r.at("kld_p99")), Kld(r.at("kld_p999")),
                             Kld(r.at("kld_max")), WorstPlace(r), Percent(r.at("same_top1"))});
    table.Add(row);
  }
  return table.Text();
}

std::string AccuracyBuckets(const Json& report) {
  const bool with_reference = report.at("evaluation") == "kld";
  std::vector<std::string> headings = {with_reference ? "<KLD mean / 99.9 % / largest (same top) by context"
                                                      : "<perplexity by context"};
  const Json& results = report.at("results");
  if (results.front().at("buckets").size() < 2) return "";
  for (const Json& bucket : results.front().at("buckets")) headings.push_back(BucketName(bucket));
  TextTable table(headings);
  for (const Json& r : results) {
    std::vector<std::string> row = {r.at("recipe")};
    for (const Json& bucket : r.at("buckets"))
      row.push_back(with_reference
                        ? fmt::format("{} / {} / {} ({})", Kld(bucket.at("kld_mean")), Kld(bucket.at("kld_p999")),
                                      Kld(bucket.at("kld_max")), Percent(bucket.at("same_top1")))
                        : fmt::format("{:.4f}", bucket.at("ppl").get<double>()));
    table.Add(row);
  }
  return table.Text();
}

}  // namespace kvrazor::apps
