#include "integrations/ggml/allocation.h"

#include <charconv>
#include <cstring>
#include <vector>

#include "ggml.h"
#include "integrations/ggml/cache_side.h"
#include "kvrazor/error.h"

namespace kvrazor::ggml {
namespace {

/// Below this, pages in 16 bits (the one being filled and the residual window) are most of a cache: packing gains
/// nothing.
constexpr int64_t kMinSlots = 4 * kPageTokens;

struct CacheName {
  Side side = Side::kKey;
  int layer = 0;
  std::string kind;  // of caches beside the main one ("cache_<kind>k_l0")
};

/// "cache_k_l12", "cache_v_l12", or the same with a kind in front of k or v.
bool ParseName(const char* name, CacheName& result) {
  std::string_view text(name);
  if (!text.starts_with("cache_")) return false;
  text.remove_prefix(6);
  const size_t at = text.rfind("_l");
  if (at == std::string_view::npos || at == 0) return false;
  const std::string_view digits = text.substr(at + 2);
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), result.layer);
  if (error != std::errc() || end != digits.data() + digits.size()) return false;
  const char which = text[at - 1];
  if (which != 'k' && which != 'v') return false;  // cache_r_l0, cache_s_l0: recurrent state, not a KV cache
  result.side = which == 'k' ? Side::kKey : Side::kValue;
  result.kind = text.substr(0, at - 1);
  return true;
}

/// "cache_s_l12": a layer with a recurrent state.
bool IsRecurrentState(const char* name) { return std::string_view(name).starts_with("cache_s_l"); }

/// The number of heads is not known yet. Of the sizes that are possible the smallest usual one takes the most bytes.
PageLayout LikelyLayout(const SideRecipe& recipe, Side side, int64_t row_values) {
  for (const int head_dim : {64, 128, 32, 256}) {
    if (row_values % head_dim != 0) continue;
    try {
      return MakePageLayout(recipe, side, {static_cast<int>(row_values / head_dim), head_dim});
    } catch (const Error&) {
      continue;
    }
  }
  throw Error("rows of " + std::to_string(row_values) +
              " values are no whole number of heads of 32, 64, 128 or 256 values");
}

int64_t PlannedBytes(const ggml_tensor* tensor, const CacheName& name, const Recipe& recipe) {
  const SideRecipe& side = name.side == Side::kKey ? recipe.k : recipe.v;
  const CacheSide::Shape shape{name.side, name.layer, tensor->ne[0], tensor->ne[1], tensor->ne[2]};
  PageLayout layout;
  if (side.codec != Codec::kF16) layout = LikelyLayout(side, name.side, tensor->ne[0]);
  int64_t bytes = CacheSide::PlannedBytes(shape, recipe, layout);
  if (side.codec == Codec::kRazorKey) bytes += SecondMoment::BytesFor(layout.shape);
  return bytes;
}

struct Pending {
  int64_t padded_bytes = 0;
  bool is_recurrent = false;
  bool is_named_cache = false;
  Placement placement;
};
// Tensors whose sizes this thread was asked for since its last allocation.
thread_local std::vector<Pending> t_pending;
constexpr size_t kMaxPending = 1 << 16;

bool KeysArePlain(int layer) {
  for (auto it = t_pending.rbegin(); it != t_pending.rend(); ++it) {
    const Placement& p = it->placement;
    if (p.kind == Placement::Kind::kNotACache) continue;
    if (p.layer == layer && p.side == Side::kKey) return p.kind == Placement::Kind::kPlain;
  }
  return false;
}

}  // namespace

Placement Place(const ggml_tensor* tensor, const Settings& settings, bool keys_plain) {
  Placement placement;
  CacheName name;
  if (tensor->op != GGML_OP_NONE || tensor->view_src || !ParseName(tensor->name, name)) return placement;
  const bool broken_recipe = !settings.error.empty() && settings.require;
  if (!settings.recipe && !broken_recipe) return placement;

  placement.side = name.side;
  placement.layer = name.layer;
  placement.kind = Placement::Kind::kPlain;
  const auto plain = [&](std::string reason) {
    placement.reason = std::move(reason);
    return placement;
  };
  if (broken_recipe) return plain(settings.error);
  if (!name.kind.empty()) return plain("a cache of kind '" + name.kind + "' is not supported");
  if (tensor->type != GGML_TYPE_F16) {
    return plain(std::string("the cache type is ") + ggml_type_name(tensor->type) +
                 " (-ctk, -ctv), only f16 caches are packed");
  }
  if (keys_plain) return plain("the keys of the layer are not packed");
  if (tensor->ne[1] % kPageTokens != 0 || tensor->ne[3] != 1) {
    return plain("a context of " + std::to_string(tensor->ne[1]) + " tokens is no multiple of " +
                 std::to_string(kPageTokens));
  }
  const Recipe recipe = settings.recipe->ForLayer(name.layer);
  if (!recipe.is_f16() && tensor->ne[1] < kMinSlots) {
    return plain("a cache (or sliding window) of " + std::to_string(tensor->ne[1]) +
                 " tokens is too short to gain from packing, " + std::to_string(kMinSlots) + " are needed");
  }
  try {
    placement.bytes = PlannedBytes(tensor, name, recipe);
  } catch (const Error& error) {
    return plain(error.what());
  }
  placement.kind = Placement::Kind::kPacked;
  return placement;
}

size_t NoteAllocSize(const ggml_tensor* tensor, size_t inner_bytes, size_t alignment) {
  if (tensor->op != GGML_OP_NONE || tensor->view_src || tensor->data) return inner_bytes;
  Pending pending;
  CacheName name;
  pending.is_recurrent = IsRecurrentState(tensor->name);
  pending.is_named_cache = ParseName(tensor->name, name);
  if (pending.is_named_cache) {
    pending.placement = Place(tensor, *CurrentSettings(), name.side == Side::kValue && KeysArePlain(name.layer));
  }
  const size_t bytes =
      pending.placement.kind == Placement::Kind::kPacked ? static_cast<size_t>(pending.placement.bytes) : inner_bytes;
  pending.padded_bytes = static_cast<int64_t>(GGML_PAD(bytes, alignment));
  if (t_pending.size() >= kMaxPending) t_pending.erase(t_pending.begin(), t_pending.begin() + kMaxPending / 2);
  t_pending.push_back(std::move(pending));
  return bytes;
}

AllocationVerdict JudgeAllocation(size_t bytes) {
  // Sizes are also asked for without an allocation (dry runs): the tensors of this one are the last whose sum is
  // `bytes`.
  AllocationVerdict verdict;
  int64_t sum = 0;
  int num_refused = 0;
  std::string first_reason;
  for (auto it = t_pending.rbegin(); it != t_pending.rend() && sum < static_cast<int64_t>(bytes); ++it) {
    sum += it->padded_bytes;
    verdict.num_recurrent += it->is_recurrent;
    verdict.recipe_is_bad |= it->is_named_cache && !CurrentSettings()->error.empty();
    if (it->placement.kind == Placement::Kind::kNotACache) continue;
    verdict.is_cache = true;
    if (it->placement.kind == Placement::Kind::kPlain) {
      ++num_refused;
      first_reason = "layer " + std::to_string(it->placement.layer) +
                     (it->placement.side == Side::kKey ? " keys: " : " values: ") + it->placement.reason;
    }
  }
  if (sum != static_cast<int64_t>(bytes)) verdict.is_cache = false;
  if (verdict.is_cache && num_refused > 0 && CurrentSettings()->require) {
    verdict.refusal = std::to_string(num_refused) + " cache tensors would stay in 16 bits; " + first_reason;
  }
  t_pending.clear();
  return verdict;
}

}  // namespace kvrazor::ggml
