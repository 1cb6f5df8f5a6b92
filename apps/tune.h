// What `kvrazor tune` finds, and the forms it is shown in.
#pragma once

#include <string>
#include <vector>

#include "apps/jsonl.h"

namespace kvrazor::apps {

/// KL divergence of `cache` minus that of `base`, over the same positions of the same windows.
struct PairedLoss {
  double mean = 0, standard_error = 0;
};
/// Measurements as of `kvrazor eval kld` (apps/eval_accuracy.h). Throws Error if one of the two has no measurement.
PairedLoss CompareLosses(const std::vector<Json>& measurements, const std::string& cache, const std::string& base);

/// What was gained over the uniform recipes, from results of held-out windows: the candidates' {recipe, bits, kld_mean}.
///   "verdict"  gained: less divergence than every uniform recipe of the same or more bits, by more than twice the error
///              unclear: a difference within twice the error; nothing: a uniform recipe is better
///   "over"     the uniform recipe it is compared with; "gain" = 1 - divergence / its divergence, "gain_se"
///   "use"      of the tuned recipe and the uniform ones within the budget, the one with the least divergence
Json Gain(const std::vector<Json>& measurements, const std::string& tuned, const Json& candidates, double budget);

/// Report: {bits, policy, groups, heldout {results}, gain, recipe_file, recipe_text ...} as of apps/tune.cc.
std::string TuneGroups(const Json& report);
std::string TuneVerdict(const Json& report);

}  // namespace kvrazor::apps
