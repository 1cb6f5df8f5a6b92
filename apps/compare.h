// Several KV caches on the same model and text: the records, and the forms they are shown in.
#pragma once

#include <string>
#include <vector>

#include "apps/worker.h"

namespace kvrazor::apps {

/// Fields of a record: recipe, context, bits_per_value, kv_bytes, peak_rss_bytes, prefill_tps, decode_tps, ppl, kld_mean,
/// kld_median, kld_p99, kld_p999, kld_max, kld_max_position, same_top1, answer and more; the first record is the 16-bit reference.
std::string CompareTable(const std::vector<Json>& records);
std::string CompareAnswers(const std::vector<Json>& records, const std::string& question);
/// A page that needs nothing else: table, plots, answers side by side.
std::string CompareHtml(const std::vector<Json>& records, const std::string& question);

}  // namespace kvrazor::apps
