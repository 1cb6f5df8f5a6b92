#include "integrations/ggml/explain.h"

#include <algorithm>
#include <cstdio>
#include <map>
#include <vector>

#include <nlohmann/json.hpp>

#include "ggml.h"
#include "integrations/ggml/counters.h"
#include "integrations/ggml/kv_cache.h"

namespace kvrazor::ggml {
namespace {

/// The recipe text of one layer, without overrides.
std::string FormatOf(const CacheTensor& tensor) {
  if (!tensor.packed) return ggml_type_name(tensor.root->type);
  Recipe recipe = tensor.layer->recipe;
  recipe.overrides.clear();
  return ToText(recipe);
}

/// One object for the keys, one for the values.
nlohmann::ordered_json ExplainLayer(const KvCache& cache, const CacheLayer& layer) {
  nlohmann::ordered_json sides = nlohmann::ordered_json::array();
  for (const CacheTensor& tensor : layer.sides) {
    if (!tensor.root) continue;
    const bool known = tensor.packed && tensor.packed->has_layout();
    const double host_bits = 8.0 * static_cast<double>(ggml_type_size(tensor.root->type)) /
                             static_cast<double>(ggml_blck_size(tensor.root->type));
    const double bits = known ? tensor.packed->layout().bits_per_value() : host_bits;
    sides.push_back({{"layer", layer.index},
                     {"side", tensor.side == Side::kKey ? "k" : "v"},
                     {"format", FormatOf(tensor)},
                     {"kernel", tensor.packed ? "kvrazor " + cache.backend().description() : std::string("ggml")},
                     {"bits_per_value", bits},
                     {"reason", tensor.packed && !known ? "no attention node was seen yet" : tensor.reason}});
  }
  return sides;
}

}  // namespace

std::string ExplainNewestCache() {
  // A context with sliding windows has two caches, each with layers of its own: from the newest back to the first that has a
  // layer again.
  std::vector<std::map<int, nlohmann::ordered_json>> caches;
  ForEachCache([&](const KvCache& cache) {
    std::map<int, nlohmann::ordered_json>& layers = caches.emplace_back();
    for (const auto& [index, layer] : cache.layers()) layers[index] = ExplainLayer(cache, layer);
  });
  std::map<int, nlohmann::ordered_json> newest;
  for (auto cache = caches.rbegin(); cache != caches.rend(); ++cache) {
    if (std::any_of(cache->begin(), cache->end(), [&](const auto& layer) { return newest.contains(layer.first); }))
      break;
    newest.merge(*cache);
  }
  nlohmann::ordered_json sides = nlohmann::ordered_json::array();
  for (const auto& [index, layer] : newest) sides.insert(sides.end(), layer.begin(), layer.end());
  return sides.dump();
}

std::string StatsLine() {
  const Counters& c = GlobalCounters();
  char line[512];
  std::snprintf(
      line, sizeof(line),
      "graphs %ld ranges %ld set_rows %ld attends %ld generic %ld sealed %ld thawed %ld state reads %ld writes %ld "
      "carriers %ld errors %ld",
      long{c.graphs}, long{c.ranges}, long{c.set_rows}, long{c.attends}, long{c.generic_nodes}, long{c.sealed_pages},
      long{c.thawed_pages}, long{c.state_reads}, long{c.state_writes}, long{c.state_carriers}, long{c.state_errors});
  return line;
}

}  // namespace kvrazor::ggml
