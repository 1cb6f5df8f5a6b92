#include "eval/calibration_file.h"

#include <fmt/format.h>

#include <cstdint>
#include <nlohmann/json.hpp>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

using Json = nlohmann::ordered_json;

constexpr char kFormat[] = "kvrazor-calibration";
constexpr int kVersion = 1;

// A whole number of [least, most]; nlohmann's own conversions cut what does not fit.
int64_t Number(const Json& json, const char* key, int64_t least, int64_t most) {
  const Json& value = json.at(key);
  if (!value.is_number_integer() || (value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX) ||
      value.get<int64_t>() < least || value.get<int64_t>() > most)
    throw Error(fmt::format("\"{}\" is no whole number from {} to {}.", key, least, most));
  return value.get<int64_t>();
}

Calibration FromJson(const Json& json) {
  Calibration c;
  if (!json.is_object() || json.value("format", "") != kFormat)
    throw Error("it is no calibration file (\"format\" is not \"" + std::string(kFormat) + "\").");
  if (const int64_t version = Number(json, "version", INT64_MIN, INT64_MAX); version != kVersion)
    throw Error(fmt::format("it is of version {}; this program reads version {}.", version, kVersion));
  c.model = json.at("model");
  c.fingerprint = json.at("fingerprint");
  c.tokens = Number(json, "tokens", 0, INT64_MAX);
  for (const Json& entry : json.at("layers")) {
    constexpr int64_t kMost = 1 << 20;  // of heads, of a head's values, of layers
    const auto number = [&](const char* key, int64_t least) {
      return static_cast<int>(Number(entry, key, least, kMost));
    };
    const int index = number("layer", 0);
    Calibration::Layer layer{.shape = {number("num_kv_heads", 1), number("head_dim", 1)}, .order = {}};
    const Json& order = entry.at("order");
    const int64_t channels = int64_t{layer.shape.num_kv_heads} * layer.shape.head_dim;
    bool is_order = order.is_array() && std::ssize(order) == channels;
    std::vector<bool> seen(is_order ? order.size() : 0);
    for (size_t i = 0; is_order && i < order.size(); ++i) {
      is_order =
          order[i].is_number_unsigned() && order[i].get<uint64_t>() < seen.size() && !seen[order[i].get<size_t>()];
      if (!is_order) break;
      seen[order[i].get<size_t>()] = true;
      layer.order.push_back(order[i].get<int32_t>());
    }
    if (!is_order)
      throw Error(fmt::format("the order of layer {} does not name each of the {} x {} channels once.", index,
                              layer.shape.num_kv_heads, layer.shape.head_dim));
    if (!c.layers.emplace(index, std::move(layer)).second) throw Error(fmt::format("layer {} is there twice.", index));
  }
  return c;
}

}  // namespace

std::string ToJson(const Calibration& calibration) {
  // One line a layer: nobody reads the orders, but a diff should find them.
  std::string layers;
  for (const auto& [index, layer] : calibration.layers) {
    const Json entry = {{"layer", index},
                        {"num_kv_heads", layer.shape.num_kv_heads},
                        {"head_dim", layer.shape.head_dim},
                        {"order", layer.order}};
    layers += (layers.empty() ? "\n    " : ",\n    ") + entry.dump();
  }
  return fmt::format(
      "{{\n  \"format\": \"{}\",\n  \"version\": {},\n  \"model\": {},\n  \"fingerprint\": {},\n  \"tokens\": {},\n"
      "  \"layers\": [{}\n  ]\n}}\n",
      kFormat, kVersion, Json(calibration.model).dump(-1, ' ', false, Json::error_handler_t::replace),
      Json(calibration.fingerprint).dump(), calibration.tokens, layers);
}

Calibration ParseCalibration(std::string_view text) {
  try {
    return FromJson(Json::parse(text));
  } catch (const Json::exception& e) {
    throw Error(fmt::format("it is damaged: {}.", e.what()));
  }
}

}  // namespace kvrazor::eval
