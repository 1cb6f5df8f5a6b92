#include <fmt/format.h>

#include "apps/compare.h"
#include "apps/text_table.h"

namespace kvrazor::apps {
namespace {

double Number(const Json& record, const char* field) { return record.at(field).get<double>(); }

std::string Kld(double value) {
  return value == 0 ? "0" : value < 0.001 ? fmt::format("{:.1e}", value) : fmt::format("{:.4f}", value);
}

}  // namespace

std::string CompareTable(const std::vector<Json>& records) {
  const Json& reference = records.front();
  TextTable table({"<cache", "bits/value", "KV cache", "smaller", "peak memory", "prefill tok/s", "decode tok/s",
                   "vs f16", "perplexity", "KLD mean", "median", "99 %", "largest", "same top"});
  for (const Json& r : records) {
    table.Add({r.at("recipe"), fmt::format("{:.2f}", Number(r, "bits_per_value")), Bytes(Number(r, "kv_bytes")),
               fmt::format("{:.2f}x", Number(reference, "kv_bytes") / Number(r, "kv_bytes")),
               Bytes(Number(r, "peak_rss_bytes")), fmt::format("{:.0f}", Number(r, "prefill_tps")),
               fmt::format("{:.1f}", Number(r, "decode_tps")),
               fmt::format("{:.2f}x", Number(r, "decode_tps") / Number(reference, "decode_tps")),
               fmt::format("{:.3f}", Number(r, "ppl")), Kld(Number(r, "kld_mean")), Kld(Number(r, "kld_median")),
               Kld(Number(r, "kld_p99")), Kld(Number(r, "kld_max")),
               fmt::format("{:.1f} %", 100 * Number(r, "same_top1"))});
  }
  return table.Text();
}

std::string CompareAnswers(const std::vector<Json>& records, const std::string& question) {
  std::string text = fmt::format("Asked: {}\n", question);
  for (const Json& r : records) {
    const std::string answer = r.at("answer");
    text += fmt::format("\n{}\n{}", r.at("recipe").get<std::string>(),
                        answer.empty() ? "  (nothing)\n" : Wrapped(answer, 100, "  "));
  }
  return text;
}

}  // namespace kvrazor::apps
