#include "kvrazor/recipe_json.h"

#include <algorithm>
#include <fstream>
#include <initializer_list>
#include <iterator>
#include <nlohmann/json.hpp>
#include <utility>
#include <vector>

#include "kvrazor/error.h"

namespace kvrazor {
namespace {

using nlohmann::json;
using nlohmann::ordered_json;

template <class E>
using Names = std::initializer_list<std::pair<E, const char*>>;

constexpr Names<Codec> kCodecs = {{Codec::kF16, "f16"},
                                  {Codec::kAffine, "affine"},
                                  {Codec::kCodebook, "codebook"},
                                  {Codec::kRazorKey, "razor-key"},
                                  {Codec::kRazorValue, "razor-value"}};
constexpr Names<Axis> kAxes = {{Axis::kPerChannel, "per-channel"}, {Axis::kPerToken, "per-token"}};
constexpr Names<ZeroPoint> kZeroPoints = {{ZeroPoint::kFloatMin, "float-min"},
                                          {ZeroPoint::kRounded, "rounded"},
                                          {ZeroPoint::kRoundedWithZero, "rounded-with-zero"},
                                          {ZeroPoint::kSymmetric, "symmetric"}};
constexpr Names<TokenScale> kTokenScales = {{TokenScale::kNone, "none"}, {TokenScale::kAllHeads, "all-heads"}};

constexpr Names<LayerUnit> kLayerUnits = {
    {LayerUnit::kIndex, "index"}, {LayerUnit::kPercent, "percent"}, {LayerUnit::kFromEnd, "from-end"}};

template <class E>
const char* NameOf(E value, Names<E> names) {
  for (const auto& [v, name] : names) {
    if (v == value) return name;
  }
  throw Error("recipe: a field has a value without a name");
}

template <class E>
E ValueOf(const std::string& key, const std::string& text, Names<E> names) {
  std::string possible;
  for (const auto& [v, name] : names) {
    if (text == name) return v;
    possible += (possible.empty() ? "" : ", ") + std::string(name);
  }
  throw Error("recipe: \"" + key + "\" cannot be \"" + text + "\"; possible are " + possible + ".");
}

/// Reads the fields of one object and refuses those it was not asked for.
class Fields {
 public:
  Fields(const json& object, std::string where) : object_(object), where_(std::move(where)) {
    if (!object.is_object()) throw Error("recipe: " + where_ + " must be a JSON object.");
  }
  template <class T>
  void Get(const char* key, T& out) {
    known_.push_back(key);
    const auto it = object_.find(key);
    if (it == object_.end()) return;
    try {
      out = it->get<T>();
    } catch (const json::exception&) {
      throw Error("recipe: " + where_ + ": \"" + key + "\" has the wrong type: " + it->dump().substr(0, 80));
    }
  }
  template <class E>
  void GetName(const char* key, E& out, Names<E> names) {
    std::string text = NameOf(out, names);
    Get(key, text);
    out = ValueOf(key, text, names);
  }
  const json* Find(const char* key) {
    known_.push_back(key);
    const auto it = object_.find(key);
    return it == object_.end() ? nullptr : &*it;
  }
  void RefuseOthers() const {
    for (const auto& [key, value] : object_.items()) {
      if (std::find(known_.begin(), known_.end(), key) != known_.end()) continue;
      std::string possible;
      for (const std::string& k : known_) possible += (possible.empty() ? "" : ", ") + k;
      throw Error("recipe: " + where_ + " has no field \"" + key + "\"; possible are " + possible + ".");
    }
  }

 private:
  const json& object_;
  std::string where_;
  std::vector<std::string> known_;
};

ordered_json SideToJson(const SideRecipe& s) {
  return {{"codec", NameOf(s.codec, kCodecs)},
          {"bits", s.bits},
          {"group_size", s.group_size},
          {"axis", NameOf(s.axis, kAxes)},
          {"zero_point", NameOf(s.zero_point, kZeroPoints)},
          {"token_scale", NameOf(s.token_scale, kTokenScales)},
          {"rotate", s.rotate},
          {"rank_one_mean", s.rank_one_mean},
          {"clip_percent", s.clip_percent},
          {"before_rope", s.before_rope}};
}

SideRecipe SideFromJson(const json& object, const std::string& where) {
  SideRecipe s;
  Fields fields(object, where);
  fields.GetName("codec", s.codec, kCodecs);
  fields.Get("bits", s.bits);
  fields.Get("group_size", s.group_size);
  fields.GetName("axis", s.axis, kAxes);
  fields.GetName("zero_point", s.zero_point, kZeroPoints);
  fields.GetName("token_scale", s.token_scale, kTokenScales);
  fields.Get("rotate", s.rotate);
  fields.Get("rank_one_mean", s.rank_one_mean);
  fields.Get("clip_percent", s.clip_percent);
  fields.Get("before_rope", s.before_rope);
  fields.RefuseOthers();
  return s;
}

}  // namespace

std::string ToJson(const Recipe& r) {
  ordered_json layers = ordered_json::array();
  for (const LayerOverride& o : r.overrides)
    layers.push_back(
        {{"first", o.first}, {"last", o.last}, {"unit", NameOf(o.unit, kLayerUnits)}, {"method", o.method}});
  const ordered_json object = {{"name", r.name},
                               {"k", SideToJson(r.k)},
                               {"v", SideToJson(r.v)},
                               {"residual_tokens", r.residual_tokens},
                               {"sink_tokens", r.sink_tokens},
                               {"exact_tokens", r.exact_tokens},
                               {"exact_extra_tokens", r.exact_extra_tokens},
                               {"exact_first_layer", r.exact_first_layer},
                               {"layers", layers}};
  return object.dump(2) + "\n";
}

Recipe ParseRecipeJson(std::string_view text) {
  json object;
  try {
    object = json::parse(text);
  } catch (const json::exception& e) {
    throw Error(std::string("recipe: this is not JSON: ") + e.what());
  }
  Recipe r;
  Fields fields(object, "the recipe");
  fields.Get("name", r.name);
  if (const json* k = fields.Find("k")) r.k = SideFromJson(*k, "k");
  if (const json* v = fields.Find("v")) r.v = SideFromJson(*v, "v");
  fields.Get("residual_tokens", r.residual_tokens);
  fields.Get("sink_tokens", r.sink_tokens);
  fields.Get("exact_tokens", r.exact_tokens);
  fields.Get("exact_extra_tokens", r.exact_extra_tokens);
  fields.Get("exact_first_layer", r.exact_first_layer);
  if (const json* layers = fields.Find("layers")) {
    if (!layers->is_array())
      throw Error(
          "recipe: \"layers\" must be an array of {first, last, method}; {unit}, if not \"index\", is \"percent\" or "
          "\"from-end\".");
    for (const json& layer : *layers) {
      LayerOverride o;
      Fields f(layer, "layers");
      f.Get("first", o.first);
      f.Get("last", o.last);
      f.GetName("unit", o.unit, kLayerUnits);
      f.Get("method", o.method);
      f.RefuseOthers();
      r.overrides.push_back(o);
    }
  }
  fields.RefuseOthers();
  Validate(r);
  return r;
}

Recipe LoadRecipe(const std::string& text_or_path) {
  if (!text_or_path.ends_with(".json")) return ParseRecipe(text_or_path);
  std::ifstream file(text_or_path, std::ios::binary);
  if (!file)
    throw Error("recipe: cannot open '" + text_or_path +
                "'; give recipe text such as razor-2 or the path of a JSON file.");
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  try {
    return ParseRecipeJson(text);
  } catch (const Error& e) {
    throw Error(text_or_path + ": " + e.what());
  }
}

}  // namespace kvrazor
