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
  if (s.bits != 2 && s.bits != 4) {
    Refuse(side + ": bits", std::to_string(s.bits),
           "code widths of 2 and 4 are possible, for example " + side + "2 or " + side + "4.");
  }
  switch (s.codec) {
    case Codec::kF16: break;
    case Codec::kAffine:
      if (s.group_size != 32 && s.group_size != 64 && s.group_size != 128) {
        Refuse(side + ": group_size", std::to_string(s.group_size),
               "32, 64 and 128 are possible, for example " + side + std::to_string(s.bits) + "g32.");
      }
      if (s.axis != (is_key ? Axis::kPerChannel : Axis::kPerToken)) {
        Refuse(side + ": axis", is_key ? "per-token" : "per-channel",
               "affine keys are grouped per channel (along tokens), affine values per token (along channels).");
      }
      if (!is_key && s.token_scale != TokenScale::kNone) {
        Refuse("v: token_scale", "set", "a token scale is taken out of keys only (it multiplies their logit).");
      }
      break;
    case Codec::kRazorKey:
      if (!is_key) Refuse("v: codec", "razor-key", "values use affine or razor-value.");
      break;
    case Codec::kRazorValue:
      if (is_key) Refuse("k: codec", "razor-value", "keys use affine or razor-key.");
      break;
  }
  if (s.codec != Codec::kAffine) {
    if (s.group_size != 0) {
      Refuse(side + ": group_size", std::to_string(s.group_size),
             "razor takes its statistics over the whole page; leave the group out.");
    }
    if (s.token_scale != TokenScale::kNone)
      Refuse(side + ": token_scale", "set", "razor stores its own scale for each token.");
    if (!s.rotate) Refuse(side + ": rotate", "off", "razor's scales need the rotation.");
  }
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
  int last = -1;
  for (const LayerOverride& o : r.overrides) {
    const std::string range = std::to_string(o.first) + "-" + std::to_string(o.last);
    if (o.first < 0 || o.last < o.first)
      Refuse("layers", range, "give FIRST-LAST with 0 <= FIRST <= LAST, for example 0-1=f16.");
    if (o.first <= last)
      Refuse("layers", range,
             "ranges are ascending and do not overlap; the one before ends at " + std::to_string(last) + ".");
    last = o.last;
    const Recipe layer = ParseRecipe(o.method);
    if (!layer.overrides.empty()) Refuse("layers " + range, o.method, "an override has no overrides of its own.");
    if (layer.residual_tokens != r.residual_tokens && layer.residual_tokens != kPageTokens) {
      Refuse("layers " + range + ": residual", std::to_string(layer.residual_tokens),
             "the window is one for all layers; set it before the first ';'.");
    }
  }
}

Recipe Recipe::ForLayer(int layer) const {
  for (const LayerOverride& o : overrides) {
    if (layer < o.first || layer > o.last) continue;
    Recipe r = ParseRecipe(o.method);
    r.residual_tokens = residual_tokens;
    return r;
  }
  Recipe r = *this;
  r.overrides.clear();
  return r;
}

}  // namespace kvrazor
