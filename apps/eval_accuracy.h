// What `kvrazor eval ppl` and `kld` measure, and the forms it is shown in.
#pragma once

#include <string>
#include <vector>

#include "apps/jsonl.h"

namespace kvrazor::apps {

/// One measurement of one cache in one window, as the worker returns and the journal keeps it: {cache, mode, window, start,
/// page_bits_per_value, bits_per_value, f16_layers, position [], nll [], kld [], same []}.
///
/// The result of each cache over all windows: {recipe, mode, page_bits_per_value, bits_per_value, f16_layers, windows,
/// positions, ppl, ppl_change, nll_se, kld_mean, kld_se, kld_median, kld_p99, kld_p999, kld_max, same_top1, worst, buckets}; without
/// `with_reference` those that compare are left out.
/// Measurements of windows from `windows` on are of a longer run and left out.
Json SummarizeAccuracy(const std::vector<std::string>& caches, const std::vector<Json>& measurements, int64_t windows,
                       bool with_reference);

/// Report: {model, text, reference (kld), window, stride, windows, first, step, machine, commit, command, results}.
std::string AccuracyTable(const Json& report);
std::string AccuracyBuckets(const Json& report);
std::string AccuracyHtml(const Json& report);

}  // namespace kvrazor::apps
