#include "apps/memory_plan.h"

#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <cmath>
#include <limits>
#include <map>

#include "apps/failures.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe_json.h"

namespace kvrazor::apps {
namespace {

constexpr int64_t kContextStep = 256;
constexpr int64_t kMaxUsers = 1'000'000'000;
constexpr int64_t kSystemPageBytes = 4096;     // memory comes in these
constexpr double kPageTableBytes = 4;          // an entry for one page of keys or values
constexpr double kLayerTableBytes = 2 * 1024;  // beside these: pages in 16 bits, the layer's own record

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

double RowBytes(const eval::LayerShape& layer, ggml_type type) {
  const double values = static_cast<double>(layer.num_kv_heads) * (layer.k_head_dim + layer.v_head_dim);
  return values * static_cast<double>(ggml_type_size(type)) / static_cast<double>(ggml_blck_size(type));
}

// Tokens that the layer's cache has room for.
double HeldTokens(const eval::LayerShape& layer, int64_t context) {
  const int64_t padded = CeilDiv(context, kContextStep) * kContextStep;
  if (layer.kind != eval::LayerKind::kWindow) return static_cast<double>(padded);
  return static_cast<double>(std::min(padded, CeilDiv(layer.window + kDefaultBatch, kContextStep) * kContextStep));
}

// Why a layer cannot be packed with the recipe; empty if it can.
std::string ReasonAgainst(const Recipe& recipe, const eval::LayerShape& layer) {
  if (layer.kind == eval::LayerKind::kWindow) return "sliding window";
  if (layer.kind == eval::LayerKind::kLatent) return "latent attention (MLA)";
  try {
    MakePageLayout(recipe.k, Side::kKey, {layer.num_kv_heads, layer.k_head_dim});
    MakePageLayout(recipe.v, Side::kValue, {layer.num_kv_heads, layer.v_head_dim});
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

// Second moment of the queries that codes are chosen by: a variance in 32 and a triangle of correlations in 16 bits.
double MomentBytes(const eval::LayerShape& layer) {
  const double dim = layer.k_head_dim;
  return layer.num_kv_heads * (4 * dim + 2 * dim * (dim - 1) / 2);
}

// A side of a layer on its way to `context` tokens. A page is sealed when it is full and `residual` full ones are behind it.
struct SideBytes {
  double most = 0;  // the moment before the last page is sealed
  double end = 0;   // with all tokens
};

SideBytes PackedSideBytes(const SideRecipe& recipe, Side side, const eval::LayerShape& layer, const Recipe& whole,
                          int64_t context) {
  const PageLayout page =
      MakePageLayout(recipe, side, {layer.num_kv_heads, side == Side::kKey ? layer.k_head_dim : layer.v_head_dim});
  const int64_t full = context / kPageTokens;
  const double row = 2.0 * static_cast<double>(page.row_values());
  const double tables = static_cast<double>(CeilDiv(context, kPageTokens)) * kPageTableBytes + kLayerTableBytes / 2;
  const auto system_pages = [](double bytes) { return std::ceil(bytes / kSystemPageBytes) * kSystemPageBytes; };
  if (recipe.codec == Codec::kF16) {
    const double bytes = static_cast<double>(full) * kPageTokens * row +
                         system_pages(static_cast<double>(context % kPageTokens) * row) + tables;
    return {bytes, bytes};
  }
  const int64_t most_exact =
      std::min<int64_t>(context, whole.sink_tokens + whole.exact_tokens + whole.exact_extra_tokens);
  const double moment = recipe.codec == Codec::kRazorKey ? MomentBytes(layer) : 0;
  const auto bytes = [&](int64_t sealed, int64_t tokens_in_16_bits) {
    const double exact = sealed > 0 ? static_cast<double>(most_exact) * row : 0;
    return system_pages(static_cast<double>(sealed) * static_cast<double>(page.page_bytes)) +
           system_pages(static_cast<double>(tokens_in_16_bits) * row) + exact + moment + tables;
  };
  const int64_t residual = std::max<int64_t>(1, CeilDiv(whole.residual_tokens, kPageTokens));
  const int64_t most = std::min(full, residual + 1), end = std::min(full, residual);
  return {bytes(full - most, most * kPageTokens), bytes(full - end, end * kPageTokens + context % kPageTokens)};
}

// 16-bit pages that a batch passes through on its way into a layer's sealed pages: one layer at a time, so once for all.
double TransientBytes(const Recipe& recipe, const eval::LayerShape& layer, int64_t context) {
  if (recipe.is_f16()) return 0;
  const double pages = static_cast<double>(CeilDiv(std::min(context, kDefaultBatch), kPageTokens));
  return pages * kPageTokens * 2 * static_cast<double>(layer.num_kv_heads) * (layer.k_head_dim + layer.v_head_dim);
}

}  // namespace

double KvBytes(const eval::ModelShape& shape, const eval::CacheChoice& cache, int64_t context) {
  double always = 0, most = 0, end = 0, transient = 0;
  const int num_layers = static_cast<int>(shape.layers.size());
  const Recipe recipe = cache.packed ? LoadRecipe(cache.recipe).ForModel(num_layers) : Recipe{};
  for (int i = 0; i < static_cast<int>(shape.layers.size()); ++i) {
    const eval::LayerShape& layer = shape.layers[static_cast<size_t>(i)];
    if (layer.kind == eval::LayerKind::kRecurrent) continue;
    if (!cache.packed) {
      always += RowBytes(layer, cache.type) * HeldTokens(layer, context);
      continue;
    }
    const Recipe own = recipe.ForLayer(i);
    if (!ReasonAgainst(own, layer).empty()) {
      always += RowBytes(layer, GGML_TYPE_F16) * HeldTokens(layer, context);
      continue;
    }
    const SideBytes k = PackedSideBytes(own.k, Side::kKey, layer, own, context);
    const SideBytes v = PackedSideBytes(own.v, Side::kValue, layer, own, context);
    most += k.most + v.most;
    end += k.end + v.end;
    transient = std::max(transient, TransientBytes(own, layer, context));
  }
  return always + std::max(most, end + transient);
}

std::string UnpackedLayers(const eval::ModelShape& shape, const eval::CacheChoice& cache) {
  if (!cache.packed) return "";
  const Recipe recipe = LoadRecipe(cache.recipe).ForModel(static_cast<int>(shape.layers.size()));
  std::map<std::string, int> reasons;
  for (int i = 0; i < static_cast<int>(shape.layers.size()); ++i) {
    const eval::LayerShape& layer = shape.layers[static_cast<size_t>(i)];
    if (layer.kind == eval::LayerKind::kRecurrent) continue;
    if (const std::string reason = ReasonAgainst(recipe.ForLayer(i), layer); !reason.empty()) ++reasons[reason];
  }
  std::string text;
  for (const auto& [reason, count] : reasons)
    text += fmt::format("{}{} of {} layers stay in 16 bits: {}", text.empty() ? "" : "; ", count, shape.layers.size(),
                        reason);
  return text;
}

double WorkspaceBytes(const eval::ModelShape& shape) {
  // Float32 logits, and at most about this many rows of the embedding's width alive at once (feed-forward layers included).
  constexpr double kLiveRows = 16;
  return static_cast<double>(kDefaultBatch) *
         (static_cast<double>(shape.vocabulary) + kLiveRows * static_cast<double>(shape.embedding_length)) *
         sizeof(float);
}

int64_t LongestContext(const eval::ModelShape& shape, const eval::CacheChoice& cache, int64_t users, double bytes,
                       int64_t most) {
  const auto fits = [&](int64_t steps) {
    return static_cast<double>(users) * KvBytes(shape, cache, steps * kContextStep) <= bytes;
  };
  int64_t good = 0, bad = CeilDiv(most, kContextStep) + 1;  // KvBytes grows with the context
  while (bad - good > 1) {
    const int64_t middle = good + (bad - good) / 2;
    (fits(middle) ? good : bad) = middle;
  }
  return std::min(good * kContextStep, most);
}

int64_t MostUsers(const eval::ModelShape& shape, const eval::CacheChoice& cache, int64_t context, double bytes) {
  const double each = KvBytes(shape, cache, context);
  if (bytes <= 0) return 0;
  if (each <= 0) return kMaxUsers;
  return static_cast<int64_t>(std::min(std::floor(bytes / each), static_cast<double>(kMaxUsers)));
}

double ParseBytes(std::string_view text) {
  const auto refuse = [&] {
    return UsageError(fmt::format(
        "'{}' is not a size. Give a number with an optional unit K, M, G or T (1024 each), for example 24G.", text));
  };
  double number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc() || !(number > 0) || !std::isfinite(number)) throw refuse();
  std::string unit(end, text.data() + text.size());
  for (char& c : unit) c = static_cast<char>(std::toupper(static_cast<unsigned char>(c)));
  if (unit.ends_with("IB"))
    unit.resize(unit.size() - 2);
  else if (unit.ends_with("B"))
    unit.resize(unit.size() - 1);
  constexpr std::string_view kUnits = "KMGTP";
  const size_t at = unit.size() == 1 ? kUnits.find(unit[0]) : std::string_view::npos;
  if (!unit.empty() && at == std::string_view::npos) throw refuse();
  const size_t power = unit.empty() ? 0 : at + 1;
  const double bytes = number * std::pow(1024.0, static_cast<double>(power));
  if (bytes > 0x1p60) throw refuse();
  return bytes;
}

}  // namespace kvrazor::apps
