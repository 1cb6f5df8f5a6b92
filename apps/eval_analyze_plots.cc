#include "apps/eval_analyze_plots.h"

#include <fmt/format.h>

#include <algorithm>

#include "apps/png_plot.h"
#include "eval/token_norms.h"

namespace kvrazor::apps {
namespace {

Json Plot(const std::string& file, const std::string& title, const std::string& png) {
  return {{"file", file}, {"title", title}, {"png", Base64(png)}};
}

std::string MagnitudesPng(const std::string& title, const std::string& value_label, const eval::StoredRows& rows,
                          const eval::KeyTreatment& treatment, int64_t head) {
  PngMap map{.rows = (head < 0 ? rows.num_heads : 1) * rows.head_dim,
             .columns = rows.num_tokens(),
             .values = eval::Magnitudes(rows, treatment, head),
             .row_borders = {},
             .title = title,
             .x_label = "token",
             .y_label = head < 0 ? "channel (heads one below the other)" : "channel",
             .value_label = value_label};
  for (int64_t row = rows.head_dim; row < map.rows; row += rows.head_dim) map.row_borders.push_back(row);
  return MapPng(map);
}

}  // namespace

std::vector<int> LayersWorthShowing(const Json& layers) {
  constexpr size_t kWidest = 4;
  std::vector<size_t> order(layers.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const auto spread = [&](size_t i) {
      return layers[i].at("keys").at("all_heads").at("median_over_min_worst").get<double>();
    };
    return spread(a) > spread(b);
  });
  order.resize(std::min(order.size(), kWidest));
  order.insert(order.end(), {size_t{0}, layers.size() - 1});
  std::sort(order.begin(), order.end());
  order.erase(std::unique(order.begin(), order.end()), order.end());
  std::vector<int> shown;
  for (const size_t i : order) shown.push_back(layers[i].at("layer"));
  return shown;
}

Json LayerPlots(int layer, int64_t head, const eval::StoredRows& keys, const eval::StoredRows& values) {
  const std::string which = head < 0 ? "all heads" : fmt::format("head {}", head);
  const std::string name = head < 0 ? fmt::format("layer_{}", layer) : fmt::format("layer_{}_head_{}", layer, head);
  const std::string place = fmt::format("layer {}, {}", layer, which);
  const std::vector<double> key_norms = eval::TokenNorms(keys, head), value_norms = eval::TokenNorms(values, head);
  Json plots = Json::array();
  plots.push_back(Plot(
      name + "_norms.png", "norm per token, " + place,
      LinesPng(
          "Norm per token, " + place + " (dots: less than half or more than twice the median)", "token", "L2 norm",
          {{"keys", key_norms, eval::Outliers(key_norms)}, {"values", value_norms, eval::Outliers(value_norms)}})));
  plots.push_back(Plot(name + "_keys.png", "keys, " + place, MagnitudesPng("Keys, " + place, "|key|", keys, {}, head)));
  if (eval::CanRotate(keys.head_dim))
    plots.push_back(Plot(name + "_keys_rotated_scaled.png", "keys rotated, norms taken out, " + place,
                         MagnitudesPng("Keys rotated, norms taken out, " + place, "|key| / norm", keys,
                                       {.rotate = true, .token_scale = true}, head)));
  plots.push_back(
      Plot(name + "_values.png", "values, " + place, MagnitudesPng("Values, " + place, "|value|", values, {}, head)));
  return plots;
}

}  // namespace kvrazor::apps
