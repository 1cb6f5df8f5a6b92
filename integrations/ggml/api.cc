#include "kvrazor/ggml.h"

#include <cstdio>
#include <cstring>
#include <string>

#include "integrations/ggml/counters.h"
#include "integrations/ggml/explain.h"
#include "integrations/ggml/hook.h"
#include "integrations/ggml/kv_cache.h"
#include "integrations/ggml/settings.h"
#include "kvrazor/error.h"

namespace kvrazor::ggml {
namespace {

void WriteError(const std::string& text, char* error, size_t error_size) {
  if (error && error_size > 0) std::snprintf(error, error_size, "%s", text.c_str());
}

}  // namespace
}  // namespace kvrazor::ggml

bool kvrazor_ggml_attach(char* error, size_t error_size) {
  const std::string& problem = kvrazor::ggml::AttachToCpuDevice();
  kvrazor::ggml::WriteError(problem, error, error_size);
  return problem.empty();
}

bool kvrazor_ggml_set_recipe(const char* recipe, bool require, char* error, size_t error_size) {
  try {
    if (!recipe) throw kvrazor::Error("set_recipe: recipe is NULL; give a recipe text, a .json path or \"off\".");
    kvrazor::ggml::SetSettings(kvrazor::ggml::MakeSettings(recipe, require));
    return true;
  } catch (const std::exception& e) {
    kvrazor::ggml::WriteError(e.what(), error, error_size);
    return false;
  }
}

void kvrazor_ggml_get_stats(kvrazor_ggml_stats* stats) {
  using namespace kvrazor::ggml;
  *stats = {};
  int64_t sealed_values = 0, sealed_bytes = 0;
  ForEachCache([&](const KvCache& cache) {
    for (const auto& [index, layer] : cache.layers()) {
      ++stats->num_layers;
      ++(layer.packed() ? stats->packed_layers : stats->f16_layers);
    }
    const CacheBytes b = cache.bytes();
    stats->f16_equivalent_bytes += b.f16_equivalent;
    stats->packed_bytes += b.packed;
    stats->staging_bytes += b.staging;
    stats->staging_peak_bytes += b.staging_peak;
    stats->exact_bytes += b.exact;
    stats->table_bytes += b.table;
    stats->other_bytes += b.other;
    stats->total_bytes += b.total;
    stats->peak_bytes += b.peak;
    sealed_values += b.sealed_values;
    sealed_bytes += b.sealed_bytes;
  });
  stats->bits_per_value =
      sealed_values ? 8.0 * static_cast<double>(sealed_bytes) / static_cast<double>(sealed_values) : 0.0;
  const Counters& c = GlobalCounters();
  stats->sealed_pages = c.sealed_pages;
  stats->thawed_pages = c.thawed_pages;
  stats->generic_nodes = c.generic_nodes;
  stats->state_errors = c.state_errors;
  stats->refused_contexts = c.refused_contexts;
}

void kvrazor_ggml_reset_counters(void) { kvrazor::ggml::GlobalCounters().Reset(); }

size_t kvrazor_ggml_explain(char* json, size_t size) {
  const std::string text = kvrazor::ggml::ExplainNewestCache();
  if (json && size > 0) {
    const size_t count = std::min(size - 1, text.size());
    std::memcpy(json, text.data(), count);
    json[count] = 0;
  }
  return text.size();
}
