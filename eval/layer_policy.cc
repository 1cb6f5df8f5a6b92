#include "eval/layer_policy.h"

#include <fmt/format.h>

#include <algorithm>
#include <map>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

const std::vector<double>& LossesOf(const Sensitivity& s, Side side) {
  return side == Side::kKey ? s.key_losses : s.value_losses;
}
const std::vector<double>& SharesOf(const Sensitivity& s, Side side) {
  return side == Side::kKey ? s.key_shares : s.value_shares;
}
size_t& LevelOf(LevelPair& pair, Side side) { return side == Side::kKey ? pair.k : pair.v; }

SideRecipe SideOf(LevelPair levels, Side side) {
  const Recipe recipe = ParseRecipe(UniformText(levels));
  return side == Side::kKey ? recipe.k : recipe.v;
}

// A side of a layer at its present level, on its way to finer ones.
struct Item {
  int layer = 0;
  Side side = Side::kKey;
  double share = 0;            // of the side's loss
  std::vector<size_t> levels;  // worth taking, ascending, the present one first
};

// Levels from the coarsest on such that each step saves less loss for its bits than the one before.
std::vector<size_t> ConvexLevels(const PolicyCost& cost, int layer, Side side, const std::vector<double>& losses) {
  std::vector<size_t> hull;
  const auto slope = [&](size_t from, size_t to) {  // loss saved for a bit
    return (losses[from] - losses[to]) / (cost.Bits(layer, side, to) - cost.Bits(layer, side, from));
  };
  for (size_t level = 0; level < losses.size(); ++level) {
    if (!hull.empty() && losses[level] >= losses[hull.back()]) continue;  // dearer and no better
    while (hull.size() > 1 && slope(hull.back(), level) >= slope(hull[hull.size() - 2], hull.back())) hull.pop_back();
    hull.push_back(level);
  }
  return hull;
}

}  // namespace

const std::vector<Level>& KeyLevels() {
  static const std::vector<Level> levels = {
      {"k2", "razor-2", "k2"}, {"k2r", "razor-2r", "k2"}, {"k3", "razor-2", "k3"}, {"k4", "razor-2", "k4"}};
  return levels;
}

const std::vector<Level>& ValueLevels() {
  static const std::vector<Level> levels = {
      {"v2", "", "v2"}, {"v2g32", "", "v2g32"}, {"v3", "", "v3"}, {"v4", "", "v4"}};
  return levels;
}

std::string UniformText(LevelPair levels) {
  const Level& k = KeyLevels()[levels.k];
  return ToText(ParseRecipe(k.method + ":" + k.option + "," + ValueLevels()[levels.v].option));
}

Recipe PolicyRecipe(const Policy& policy) {
  std::map<std::string, int> count;
  for (const LevelPair& pair : policy) ++count[UniformText(pair)];
  const auto most =
      std::max_element(count.begin(), count.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  Recipe recipe = ParseRecipe(most->first);
  for (int layer = 0; layer < static_cast<int>(policy.size()); ++layer) {
    const std::string method = UniformText(policy[static_cast<size_t>(layer)]);
    if (method == most->first) continue;
    std::vector<LayerOverride>& overrides = recipe.overrides;
    if (!overrides.empty() && overrides.back().last == layer - 1 && overrides.back().method == method)
      overrides.back().last = layer;
    else
      overrides.push_back({.first = layer, .last = layer, .method = method});
  }
  Validate(recipe);
  return recipe;
}

PolicyCost::PolicyCost(const ModelShape& shape) {
  for (const LayerShape& layer : shape.layers) {
    Layer own;
    own.k = {layer.num_kv_heads, layer.k_head_dim};
    own.v = {layer.num_kv_heads, layer.v_head_dim};
    if (layer.kind == LayerKind::kFull) {
      try {
        MakePageLayout(SideOf({}, Side::kKey), Side::kKey, own.k);
        MakePageLayout(SideOf({}, Side::kValue), Side::kValue, own.v);
        own.values = static_cast<double>(layer.num_kv_heads) * (layer.k_head_dim + layer.v_head_dim);
      } catch (const Error&) {
        // Heads that cannot be packed: the layer stays in 16 bits, whatever is chosen.
      }
    }
    values_ += own.values;
    layers_.push_back(own);
  }
  if (values_ == 0)
    throw Error(
        "no layer of this model can be packed, so there is nothing to choose; kvrazor plan says why "
        "(kvrazor plan MODEL --memory 8G).");
  const auto bits = [&](LevelPair pair, Side side, HeadShape heads) {
    const PageLayout page = MakePageLayout(SideOf(pair, side), side, heads);
    return page.bits_per_value() * static_cast<double>(page.row_values()) / values_;
  };
  for (Layer& layer : layers_) {
    for (size_t k = 0; k < KeyLevels().size(); ++k)
      layer.k_bits.push_back(layer.values > 0 ? bits({k, 0}, Side::kKey, layer.k) : 0);
    for (size_t v = 0; v < ValueLevels().size(); ++v)
      layer.v_bits.push_back(layer.values > 0 ? bits({0, v}, Side::kValue, layer.v) : 0);
  }
}

double PolicyCost::Bits(int layer, Side side, size_t level) const {
  const Layer& own = layers_[static_cast<size_t>(layer)];
  return (side == Side::kKey ? own.k_bits : own.v_bits)[level];
}

double PolicyCost::Bits(const Policy& policy) const {
  double bits = 0;
  for (int layer = 0; layer < num_layers(); ++layer) {
    const LevelPair& pair = policy[static_cast<size_t>(layer)];
    bits += Bits(layer, Side::kKey, pair.k) + Bits(layer, Side::kValue, pair.v);
  }
  return bits;
}

double PolicyCost::Bits(const Recipe& recipe) const {
  const Recipe by_index = recipe.ForModel(num_layers());
  double bits = 0;
  for (int layer = 0; layer < num_layers(); ++layer) {
    if (!is_packed(layer)) continue;
    const Layer& shape = layers_[static_cast<size_t>(layer)];
    const Recipe own = by_index.ForLayer(layer);
    const PageLayout k = MakePageLayout(own.k, Side::kKey, shape.k), v = MakePageLayout(own.v, Side::kValue, shape.v);
    bits += (k.bits_per_value() * static_cast<double>(k.row_values()) +
             v.bits_per_value() * static_cast<double>(v.row_values())) /
            values_;
  }
  return bits;
}

double PolicyCost::lowest() const { return Bits(Uniform({})); }
double PolicyCost::highest() const { return Bits(Uniform({KeyLevels().size() - 1, ValueLevels().size() - 1})); }

std::vector<LayerGroup> MakeGroups(const PolicyCost& cost, int groups) {
  int packed = 0;
  for (int layer = 0; layer < cost.num_layers(); ++layer) packed += cost.is_packed(layer);
  const int size = (packed + std::max(groups, 1) - 1) / std::max(groups, 1);
  std::vector<LayerGroup> result;
  for (int layer = 0; layer < cost.num_layers(); ++layer) {
    if (!cost.is_packed(layer)) continue;
    LayerGroup* newest = result.empty() ? nullptr : &result.back();
    if (newest && newest->last == layer - 1 && newest->last - newest->first + 1 < size)
      newest->last = layer;
    else
      result.push_back({layer, layer});
  }
  return result;
}

std::vector<double> Shares(const std::vector<GroupLoss>& losses) {
  const double count = static_cast<double>(losses.size());
  double mean = 0, noise = 0;
  for (const GroupLoss& l : losses) {
    mean += l.loss / count;
    noise += l.standard_error * l.standard_error / count;
  }
  double variance = 0;
  for (const GroupLoss& l : losses) variance += (l.loss - mean) * (l.loss - mean) / std::max(count - 1, 1.0);
  const double kept = variance > noise ? 1 - noise / variance : 0;
  std::vector<double> shares;
  double sum = 0;
  for (const GroupLoss& l : losses) {
    shares.push_back(std::max(0.0, mean + kept * (l.loss - mean)));
    sum += shares.back();
  }
  for (double& share : shares) share = sum > 0 ? share / sum : 1 / count;
  return shares;
}

void CheckBudget(const PolicyCost& cost, double bits) {
  const double lowest = cost.lowest(), highest = cost.highest();
  if (bits < lowest)
    throw Error(
        fmt::format("{:g} bits per value are too few: {:.3f} is the least that this model can be stored in ({}).", bits,
                    lowest, UniformText({})));
  if (bits > highest)
    throw Error(fmt::format("{:g} bits per value are more than there is a choice for: {:.3f} is the most ({}).", bits,
                            highest, UniformText({KeyLevels().size() - 1, ValueLevels().size() - 1})));
}

Policy ChoosePolicy(const PolicyCost& cost, const Sensitivity& sensitivity, double bits) {
  CheckBudget(cost, bits);
  std::vector<Item> items;
  for (size_t g = 0; g < sensitivity.groups.size(); ++g) {
    const LayerGroup& group = sensitivity.groups[g];
    for (const Side side : {Side::kKey, Side::kValue}) {
      const double share = SharesOf(sensitivity, side)[g] / (group.last - group.first + 1);
      for (int layer = group.first; layer <= group.last; ++layer)
        items.push_back({layer, side, share, ConvexLevels(cost, layer, side, LossesOf(sensitivity, side))});
    }
  }
  std::stable_sort(items.begin(), items.end(), [](const Item& a, const Item& b) { return a.layer > b.layer; });

  Policy policy = cost.Uniform({});
  double left = bits - cost.lowest();
  constexpr double kRounding = 1e-9;  // of sums of bits
  for (;;) {
    Item* best = nullptr;
    double best_saved = 0, best_bits = 0;
    for (Item& item : items) {
      if (item.levels.size() < 2) continue;
      const std::vector<double>& losses = LossesOf(sensitivity, item.side);
      const size_t from = item.levels[0], to = item.levels[1];
      const double extra = cost.Bits(item.layer, item.side, to) - cost.Bits(item.layer, item.side, from);
      const double saved = item.share * (losses[from] - losses[to]) / extra;
      if (extra > left + kRounding || saved <= best_saved * (1 + kRounding)) continue;
      best = &item;
      best_saved = saved;
      best_bits = extra;
    }
    if (!best) return policy;
    best->levels.erase(best->levels.begin());
    LevelOf(policy[static_cast<size_t>(best->layer)], best->side) = best->levels.front();
    left -= best_bits;
  }
}

double PredictedLoss(const Policy& policy, const Sensitivity& sensitivity) {
  double loss = 0;
  for (size_t g = 0; g < sensitivity.groups.size(); ++g) {
    const LayerGroup& group = sensitivity.groups[g];
    for (int layer = group.first; layer <= group.last; ++layer) {
      const LevelPair& pair = policy[static_cast<size_t>(layer)];
      loss += (sensitivity.key_shares[g] * sensitivity.key_losses[pair.k] +
               sensitivity.value_shares[g] * sensitivity.value_losses[pair.v]) /
              (group.last - group.first + 1);
    }
  }
  return loss;
}

}  // namespace kvrazor::eval
