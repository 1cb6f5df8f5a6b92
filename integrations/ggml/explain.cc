#include "integrations/ggml/explain.h"

#include <cstdio>

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

}  // namespace

std::string ExplainNewestCache() {
  nlohmann::ordered_json sides = nlohmann::ordered_json::array();
  ForEachCache([&](const KvCache& cache) {
    sides = nlohmann::ordered_json::array();
    for (const auto& [index, layer] : cache.layers()) {
      for (const CacheTensor& tensor : layer.sides) {
        if (!tensor.root) continue;
        const bool known = tensor.packed && tensor.packed->has_layout();
        const double host_bits = 8.0 * static_cast<double>(ggml_type_size(tensor.root->type)) /
                                 static_cast<double>(ggml_blck_size(tensor.root->type));
        const double bits = known ? tensor.packed->layout().bits_per_value() : host_bits;
        sides.push_back({{"layer", index},
                         {"side", tensor.side == Side::kKey ? "k" : "v"},
                         {"format", FormatOf(tensor)},
                         {"kernel", tensor.packed ? "kvrazor " + cache.backend().description() : std::string("ggml")},
                         {"bits_per_value", bits},
                         {"reason", tensor.packed && !known ? "no attention node was seen yet" : tensor.reason}});
      }
    }
  });
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
