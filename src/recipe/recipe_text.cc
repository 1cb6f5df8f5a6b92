// Recipe text: NAME[:OPTION,...][;LAYERS=NAME[:OPTION,...]]...
#include <algorithm>
#include <charconv>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kvrazor/error.h"
#include "kvrazor/recipe.h"

namespace kvrazor {
namespace {

std::string_view Trim(std::string_view s) {
  while (!s.empty() && (s.front() == ' ' || s.front() == '\t')) s.remove_prefix(1);
  while (!s.empty() && (s.back() == ' ' || s.back() == '\t')) s.remove_suffix(1);
  return s;
}

/// The part before the next `separator`; `rest` becomes what is behind it.
std::string_view TakePart(std::string_view& rest, char separator) {
  const size_t at = rest.find(separator);
  const std::string_view part = rest.substr(0, at);
  rest = at == std::string_view::npos ? std::string_view{} : rest.substr(at + 1);
  return Trim(part);
}

std::optional<int> TakeInt(std::string_view& s) {
  int value = 0;
  const auto [end, error] = std::from_chars(s.data(), s.data() + s.size(), value);
  if (error != std::errc{} || end == s.data() || value < 0) return std::nullopt;
  s.remove_prefix(static_cast<size_t>(end - s.data()));
  return value;
}

const Recipe& BaseRecipe(std::string_view name) {
  std::string names;
  for (const std::vector<Method>* methods : {&Methods(), &ShadowMethods()}) {
    for (const Method& m : *methods) {
      if (m.name == name) return m.recipe;
      names += (names.empty() ? "" : ", ") + m.name;
    }
  }
  throw Error("recipe: no method '" + std::string(name) + "'; there are " + names +
              ". `kvrazor methods` describes them.");
}

[[noreturn]] void BadOption(std::string_view option) {
  throw Error(
      "recipe: cannot read the option '" + std::string(option) +
      "'; options are k<bits>[g<group>], v<bits>[g<group>], residual=<tokens>, sinks=<tokens>, "
      "exact=<tokens>, exact-extra=<tokens>, exact-from=<layer>, for example oscar:k2g32,v2g32,residual=128,sinks=4.");
}

/// "2g64" onto a side. A group size is only there when it was given.
void ApplySide(std::string_view text, std::string_view option, SideRecipe& side) {
  if (side.codec == Codec::kF16) {
    throw Error("recipe: '" + std::string(option) +
                "' does not apply to f16, which stores 16 bits; choose a method that quantizes, for example oscar.");
  }
  const std::optional<int> bits = TakeInt(text);
  if (!bits) BadOption(option);
  side.bits = *bits;
  if (text.empty()) return;
  if (text.front() != 'g') BadOption(option);
  text.remove_prefix(1);
  const std::optional<int> group = TakeInt(text);
  if (!group || !text.empty()) BadOption(option);
  side.group_size = *group;
}

void ApplyOption(std::string_view option, Recipe& r) {
  std::string_view rest = option;
  auto take_prefix = [&](std::string_view prefix) {
    if (rest.substr(0, prefix.size()) != prefix) return false;
    rest.remove_prefix(prefix.size());
    return true;
  };
  auto take_count = [&](int& field) {
    const std::optional<int> value = TakeInt(rest);
    if (!value || !rest.empty()) BadOption(option);
    field = *value;
  };
  if (take_prefix("residual=")) return take_count(r.residual_tokens);
  if (take_prefix("sinks=")) return take_count(r.sink_tokens);
  if (take_prefix("exact=")) {
    take_count(r.exact_tokens);
    if (r.exact_tokens == 0) r.exact_extra_tokens = r.exact_first_layer = 0;
    return;
  }
  if (take_prefix("exact-extra=")) return take_count(r.exact_extra_tokens);
  if (take_prefix("exact-from=")) return take_count(r.exact_first_layer);
  if (take_prefix("k")) return ApplySide(rest, option, r.k);
  if (take_prefix("v")) return ApplySide(rest, option, r.v);
  BadOption(option);
}

Recipe ParseMethod(std::string_view text) {
  std::string_view rest = text;
  const bool has_options = text.find(':') != std::string_view::npos;
  const std::string_view name = TakePart(rest, ':');
  if (name.empty())
    throw Error("recipe: the name is missing in '" + std::string(text) +
                "'; give the name of a method, for example oscar.");
  Recipe r = BaseRecipe(name);
  if (has_options && Trim(rest).empty()) BadOption("");
  while (!rest.empty()) {
    const bool trailing = rest.back() == ',';
    const std::string_view option = TakePart(rest, ',');
    if (option.empty() || (trailing && rest.empty())) BadOption("");
    ApplyOption(option, r);
  }
  return r;
}

/// "3", "3-7", "50%-100%", "50%-", "last2". False if it is none of them.
bool ParseLayers(std::string_view text, LayerOverride& o) {
  if (text.substr(0, 4) == "last") {
    text.remove_prefix(4);
    const std::optional<int> count = TakeInt(text);
    if (!count || !text.empty()) return false;
    o.first = *count;
    o.unit = LayerUnit::kFromEnd;
    return true;
  }
  const std::optional<int> first = TakeInt(text);
  if (!first) return false;
  o.first = *first;
  const auto take = [&](char c) {
    if (text.empty() || text.front() != c) return false;
    text.remove_prefix(1);
    return true;
  };
  if (take('%')) {
    o.unit = LayerUnit::kPercent;
    o.last = 100;
    if (!take('-')) return false;
    if (text.empty()) return true;
    const std::optional<int> last = TakeInt(text);
    if (!last || !take('%')) return false;
    o.last = *last;
    return text.empty();
  }
  o.last = o.first;
  if (take('-')) {
    const std::optional<int> last = TakeInt(text);
    if (!last) return false;
    o.last = *last;
  }
  return text.empty();
}

LayerOverride ParseOverride(std::string_view text) {
  std::string_view rest = text;
  const std::string_view layers = TakePart(rest, '=');
  LayerOverride o;
  if (!ParseLayers(layers, o) || Trim(rest).empty()) {
    throw Error("recipe: cannot read the layers '" + std::string(text) +
                "'; give FIRST-LAST=METHOD, for example razor-2;0-1=f16, a share of the layers as in "
                "razor-2;50%-100%=razor-3, or the last ones as in razor-2;last2=f16.");
  }
  o.method = ToText(ParseMethod(Trim(rest)));
  return o;
}

std::string LayersText(const LayerOverride& o) {
  switch (o.unit) {
    case LayerUnit::kFromEnd: return "last" + std::to_string(o.first);
    case LayerUnit::kPercent: return std::to_string(o.first) + "%-" + std::to_string(o.last) + "%";
    case LayerUnit::kIndex: break;
  }
  return std::to_string(o.first) + (o.last != o.first ? "-" + std::to_string(o.last) : "");
}

std::string SideText(char letter, const SideRecipe& side, const SideRecipe& base) {
  if (side.bits == base.bits && side.group_size == base.group_size) return "";
  std::string s = letter + std::to_string(side.bits);
  if (side.group_size != base.group_size) s += "g" + std::to_string(side.group_size);
  return s;
}

}  // namespace

Recipe ParseRecipe(std::string_view text) {
  if (text.size() > 4096)
    throw Error("recipe: the text has " + std::to_string(text.size()) + " characters; at most 4096 are read.");
  std::string_view rest = text;
  Recipe r = ParseMethod(TakePart(rest, ';'));
  // Those of the method itself come last: what the text says of a layer goes before.
  const std::vector<LayerOverride> of_method = std::move(r.overrides);
  r.overrides.clear();
  while (!rest.empty()) r.overrides.push_back(ParseOverride(TakePart(rest, ';')));
  r.overrides.insert(r.overrides.end(), of_method.begin(), of_method.end());
  Validate(r);
  return r;
}

std::string ToText(const Recipe& recipe) {
  const Recipe& base = BaseRecipe(recipe.name);
  std::string options;
  auto add = [&](const std::string& option) {
    if (!option.empty()) options += (options.empty() ? ":" : ",") + option;
  };
  add(SideText('k', recipe.k, base.k));
  add(SideText('v', recipe.v, base.v));
  if (recipe.residual_tokens != base.residual_tokens) add("residual=" + std::to_string(recipe.residual_tokens));
  if (recipe.sink_tokens != base.sink_tokens) add("sinks=" + std::to_string(recipe.sink_tokens));
  if (recipe.exact_tokens != base.exact_tokens) add("exact=" + std::to_string(recipe.exact_tokens));
  if (recipe.exact_tokens > 0) {
    if (recipe.exact_extra_tokens != base.exact_extra_tokens)
      add("exact-extra=" + std::to_string(recipe.exact_extra_tokens));
    if (recipe.exact_first_layer != base.exact_first_layer)
      add("exact-from=" + std::to_string(recipe.exact_first_layer));
  }
  std::string text = recipe.name + options;
  // What the method brings along is not said again.
  const size_t of_method = base.overrides.size();
  size_t count = recipe.overrides.size();
  if (count >= of_method &&
      std::equal(base.overrides.begin(), base.overrides.end(), recipe.overrides.end() - of_method))
    count -= of_method;
  for (size_t i = 0; i < count; ++i) text += ";" + LayersText(recipe.overrides[i]) + "=" + recipe.overrides[i].method;
  return text;
}

}  // namespace kvrazor
