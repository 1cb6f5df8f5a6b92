#include <algorithm>
#include <cstdint>
#include <string>

#include "kvrazor/error.h"
#include "kvrazor/recipe.h"

namespace kvrazor {
namespace {

[[noreturn]] void Refuse(const std::string& what, const std::string& asked, const std::string& possible) {
  throw Error("recipe: " + what + " cannot be " + asked + "; " + possible);
}

void ValidateSide(const SideRecipe& s, bool is_key) {
  const std::string side = is_key ? "k" : "v";
  if (s.codec == Codec::kF16) {
    if (s.bits != 16)
      Refuse(side + ": bits", std::to_string(s.bits), "16-bit storage has 16 bits. Choose a method that quantizes.");
    if (s.rotate || s.token_scale != TokenScale::kNone || s.group_size != 0) {
      Refuse(side, "16 bit with a rotation, token scale or groups",
             "16-bit values are stored as the model wrote them.");
    }
    return;
  }
  if (s.bits < 2 || s.bits > 4) {
    Refuse(side + ": bits", std::to_string(s.bits),
           "code widths of 2, 3 and 4 are possible, for example " + side + "2 or " + side + "4.");
  }
  switch (s.codec) {
    case Codec::kF16: break;
    case Codec::kAffine:
      if (s.group_size != 32 && s.group_size != 64 && s.group_size != 128) {
        Refuse(side + ": group_size", std::to_string(s.group_size),
               "32, 64 and 128 are possible, for example " + side + std::to_string(s.bits) + "g32.");
      }
      if (!is_key && s.axis != Axis::kPerToken)
        Refuse(side + ": axis", "per-channel", "affine values are grouped per token (along channels).");
      if (s.clip_percent < 50 || s.clip_percent > 100)
        Refuse(side + ": clip_percent", std::to_string(s.clip_percent), "50 to 100 are possible.");
      if (s.clip_percent != 100 && s.zero_point == ZeroPoint::kFloatMin)
        Refuse(side + ": clip_percent", std::to_string(s.clip_percent), "quantizers with a float minimum do not clip.");
      if (!is_key && s.token_scale != TokenScale::kNone) {
        Refuse("v: token_scale", "set", "a token scale is taken out of keys only (it multiplies their logit).");
      }
      break;
    case Codec::kCodebook: break;
    case Codec::kRazorKey:
      if (!is_key) Refuse("v: codec", "razor-key", "values use affine or razor-value.");
      break;
    case Codec::kRazorValue:
      if (is_key) Refuse("k: codec", "razor-value", "keys use affine or razor-key.");
      break;
  }
  if (s.clip_percent != 100 && s.codec != Codec::kAffine)
    Refuse(side + ": clip_percent", "set", "only affine groups are clipped.");
  if (s.codec == Codec::kCodebook && s.group_size != 0) {
    Refuse(side + ": group_size", std::to_string(s.group_size),
           "a codebook serves whole heads, one norm a token; leave the group out.");
  }
  if (s.rank_one_mean && s.codec != Codec::kRazorKey)
    Refuse(side + ": rank_one_mean", "set", "only razor keys have a page mean.");
  if (s.codec == Codec::kRazorKey && s.group_size != 0) {
    Refuse(side + ": group_size", std::to_string(s.group_size),
           "razor keys take their mean over the whole page; leave the group out.");
  }
  if (s.codec == Codec::kRazorValue && s.group_size != 0 && s.group_size != 32 && s.group_size != 64) {
    Refuse(side + ": group_size", std::to_string(s.group_size),
           "razor values are grouped by 32 or 64 tokens, for example v2g32; leave the group out for the whole page.");
  }
  if (s.before_rope && (!is_key || s.codec != Codec::kAffine || s.axis != Axis::kPerToken || s.rotate ||
                        s.token_scale != TokenScale::kNone)) {
    Refuse(side + ": before_rope", "set",
           "only affine keys grouped per token are quantized before RoPE, without another rotation or a token scale.");
  }
  if (s.codec != Codec::kAffine) {
    if (s.token_scale != TokenScale::kNone)
      Refuse(side + ": token_scale", "set", "this codec stores its own scale for each token.");
    if (!s.rotate && s.codec != Codec::kCodebook) Refuse(side + ": rotate", "off", "razor's scales need the rotation.");
  }
}

void ValidateExact(const Recipe& r) {
  if (r.exact_tokens < 0 || r.exact_tokens > kMaxExactTokens) {
    Refuse("exact", std::to_string(r.exact_tokens),
           "a pool of 0 to " + std::to_string(kMaxExactTokens) + " outlier tokens is possible, for example exact=3.");
  }
  if (r.exact_extra_tokens < 0 || r.exact_extra_tokens > kMaxExactExtraTokens) {
    Refuse("exact-extra", std::to_string(r.exact_extra_tokens),
           "0 to " + std::to_string(kMaxExactExtraTokens) +
               " tokens can stay in 16 bits after leaving the pool, for example exact-extra=32.");
  }
  if (r.exact_first_layer < 0) {
    Refuse("exact-from", std::to_string(r.exact_first_layer),
           "it is the first layer that traces outlier tokens, for example exact-from=2.");
  }
  if (r.exact_tokens == 0) {
    const std::string help = "there is no pool of outlier tokens; give its size, for example exact=3.";
    if (r.exact_extra_tokens != 0) Refuse("exact-extra", std::to_string(r.exact_extra_tokens), help);
    if (r.exact_first_layer != 0) Refuse("exact-from", std::to_string(r.exact_first_layer), help);
  } else if (r.k.codec == Codec::kF16) {
    Refuse("exact", std::to_string(r.exact_tokens),
           "outlier tokens are found by their keys, and these are all in 16 bits; choose a method that quantizes keys, "
           "for example kivi:exact=3.");
  }
}

}  // namespace

namespace {

std::string LayersOf(const LayerOverride& o) {
  const std::string first = std::to_string(o.first);
  const std::string last = std::to_string(o.last);
  switch (o.unit) {
    case LayerUnit::kIndex: break;
    case LayerUnit::kPercent: return first + "%-" + last + "%";
    case LayerUnit::kFromEnd: return "last" + first;
  }
  return first + "-" + last;
}

}  // namespace

void Validate(const Recipe& r) {
  if (r.name.empty()) throw Error("recipe: the name is missing; give the name of a method, for example oscar.");
  ValidateSide(r.k, true);
  ValidateSide(r.v, false);
  if (r.residual_tokens < kPageTokens || r.residual_tokens > 1024 * kPageTokens ||
      r.residual_tokens % kPageTokens != 0) {
    Refuse("residual", std::to_string(r.residual_tokens),
           "it counts the newest tokens in 16 bits and is a multiple of " + std::to_string(kPageTokens) + " from " +
               std::to_string(kPageTokens) + " up, for example residual=128.");
  }
  if (r.sink_tokens < 0 || r.sink_tokens > kPageTokens) {
    Refuse("sinks", std::to_string(r.sink_tokens),
           "0 to " + std::to_string(kPageTokens) + " first tokens can stay in 16 bits, for example sinks=4.");
  }
  ValidateExact(r);
  int last = -1;
  for (const LayerOverride& o : r.overrides) {
    const std::string range = LayersOf(o);
    switch (o.unit) {
      case LayerUnit::kIndex:
        if (o.first < 0 || o.last < o.first)
          Refuse("layers", range, "give FIRST-LAST with 0 <= FIRST <= LAST, for example 0-1=f16.");
        if (o.first <= last)
          Refuse("layers", range,
                 "ranges are ascending and do not overlap; the one before ends at " + std::to_string(last) + ".");
        last = o.last;
        break;
      case LayerUnit::kPercent:
        if (o.first < 0 || o.last <= o.first || o.last > 100)
          Refuse("layers", range, "give FIRST%-LAST% with 0 <= FIRST < LAST <= 100, for example 50%-100%=f16.");
        break;
      case LayerUnit::kFromEnd:
        if (o.first < 1 || o.last != 0)
          Refuse("layers", range, "say how many of the last layers, for example last2=f16.");
        break;
    }
    const Recipe layer = ParseRecipe(o.method);
    if (!layer.overrides.empty()) Refuse("layers " + range, o.method, "an override has no overrides of its own.");
    if (layer.residual_tokens != r.residual_tokens && layer.residual_tokens != kPageTokens) {
      Refuse("layers " + range + ": residual", std::to_string(layer.residual_tokens),
             "the window is one for all layers; set it before the first ';'.");
    }
  }
}

bool LayerOverride::Covers(int layer, int num_layers) const {
  switch (unit) {
    case LayerUnit::kIndex: break;
    case LayerUnit::kPercent:
      return int64_t{layer} * 100 >= int64_t{first} * num_layers && int64_t{layer} * 100 < int64_t{last} * num_layers;
    case LayerUnit::kFromEnd: return layer >= num_layers - first;
  }
  return layer >= first && layer <= last;
}

bool Recipe::depends_on_num_layers() const {
  return std::any_of(overrides.begin(), overrides.end(),
                     [](const LayerOverride& o) { return o.unit != LayerUnit::kIndex; });
}

Recipe Recipe::ForModel(int num_layers) const {
  if (!depends_on_num_layers()) return *this;
  if (num_layers < 1) {
    throw Error("recipe: the layers of '" + ToText(*this) + "' depend on how many the model has; there are " +
                std::to_string(num_layers) + ". Give a number of layers of at least 1.");
  }
  Recipe r = *this;
  r.overrides.clear();
  // Its text must not bring the method's own overrides back.
  for (const Method& method : Methods()) {
    if (method.name == name && !method.base.empty()) r.name = method.base;
  }
  for (int layer = 0; layer < num_layers; ++layer) {
    const auto covers = [&](const LayerOverride& o) { return o.Covers(layer, num_layers); };
    const auto found = std::find_if(overrides.begin(), overrides.end(), covers);
    if (found == overrides.end()) continue;
    if (!r.overrides.empty() && r.overrides.back().last == layer - 1 && r.overrides.back().method == found->method) {
      r.overrides.back().last = layer;
    } else {
      r.overrides.push_back({layer, layer, found->method, LayerUnit::kIndex});
    }
  }
  // An index beyond the model is the caller's to judge, as in a recipe without shares.
  for (const LayerOverride& o : overrides) {
    if (o.unit == LayerUnit::kIndex && o.last >= num_layers)
      r.overrides.push_back({std::max(o.first, num_layers), o.last, o.method, LayerUnit::kIndex});
  }
  return r;
}

Recipe Recipe::ForLayer(int layer) const {
  if (depends_on_num_layers()) {
    throw Error("recipe: the layers of '" + ToText(*this) +
                "' depend on how many the model has, and that is not known here; name them by index, for example " +
                name + ";15-29=" + overrides.back().method + ".");
  }
  const auto covers = [&](const LayerOverride& o) { return o.Covers(layer, 0); };
  const auto found = std::find_if(overrides.begin(), overrides.end(), covers);
  Recipe r = found != overrides.end() ? ParseRecipe(found->method) : *this;
  r.residual_tokens = residual_tokens;
  r.overrides.clear();
  if (layer < r.exact_first_layer) r.exact_tokens = r.exact_extra_tokens = 0;
  r.exact_first_layer = 0;
  return r;
}

}  // namespace kvrazor
