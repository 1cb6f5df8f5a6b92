// Which layers get more bits: a width for each layer's keys and values from measured losses, under a budget.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "eval/model_shape.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"

namespace kvrazor::eval {

/// One way to store a side. Keys choose the method, values only options of their own.
struct Level {
  std::string name;    ///< as people read it: "k3", "v2g32"
  std::string method;  ///< keys: "razor-2" or "razor-2r"; empty for values
  std::string option;  ///< as in recipe text
};
/// Ascending in bits. The first is the coarsest, the last the finest.
const std::vector<Level>& KeyLevels();
const std::vector<Level>& ValueLevels();
inline const std::vector<Level>& Levels(Side side) { return side == Side::kKey ? KeyLevels() : ValueLevels(); }

/// Indices into KeyLevels and ValueLevels.
struct LevelPair {
  size_t k = 0, v = 0;
  bool operator==(const LevelPair&) const = default;
};
/// The same in all layers, as recipe text.
std::string UniformText(LevelPair levels);

/// The choice for each layer of a model.
using Policy = std::vector<LevelPair>;
/// The recipe; runs of equal layers become overrides of the pair that most layers have.
Recipe PolicyRecipe(const Policy& policy);

/// What the policies of a model cost. Layers that cannot be packed (sliding windows, odd heads) cost nothing and are not chosen.
class PolicyCost {
 public:
  /// Throws Error if no layer can be packed.
  explicit PolicyCost(const ModelShape& shape);
  int num_layers() const { return static_cast<int>(layers_.size()); }
  bool is_packed(int layer) const { return layers_[static_cast<size_t>(layer)].values > 0; }
  /// Bits that a side's sealed pages take at a level, over all values of the packed layers, both sides.
  double Bits(int layer, Side side, size_t level) const;
  /// Stored bits per value of sealed pages: the "page bits" of the reports.
  double Bits(const Policy& policy) const;
  double Bits(const Recipe& recipe) const;
  Policy Uniform(LevelPair levels) const { return Policy(layers_.size(), levels); }
  double lowest() const;   ///< coarsest levels everywhere
  double highest() const;  ///< finest levels everywhere

 private:
  struct Layer {
    HeadShape k, v;
    double values = 0;                   // of one token, both sides; 0: not packed
    std::vector<double> k_bits, v_bits;  // [levels]
  };
  std::vector<Layer> layers_;
  double values_ = 0;  // of one token, all packed layers
};

/// Layers whose loss was measured together.
struct LayerGroup {
  int first = 0, last = 0;
  bool operator==(const LayerGroup&) const = default;
};
/// About `groups` runs of packed layers, ascending, of equal length but for the last; none of them spans a layer that is not packed.
std::vector<LayerGroup> MakeGroups(const PolicyCost& cost, int groups);

/// Loss (mean KL divergence over that of the finest levels) with some layers of a side at the coarsest level.
struct GroupLoss {
  double loss = 0, standard_error = 0;
};
/// Each group's share of the side's loss; sums to 1. Differences among groups that lie within the error of measurement are
/// shrunk to the mean (James-Stein): what is noise in a short text must not decide.
std::vector<double> Shares(const std::vector<GroupLoss>& losses);

struct Sensitivity {
  std::vector<LayerGroup> groups;
  std::vector<double> key_shares, value_shares;  ///< [groups]
  std::vector<double> key_losses, value_losses;  ///< of each level, that level in all layers; the finest has 0
};
/// Throws Error that says what is possible if `bits` is below the coarsest or above the finest policy.
void CheckBudget(const PolicyCost& cost, double bits);

/// The policy of at most `bits` whose predicted loss is lowest: steps from the coarsest levels, always the one that saves most
/// loss for its bits, over the levels that are worth it at all (the lower convex hull). Of equal layers the last come first.
/// Throws Error as CheckBudget does.
Policy ChoosePolicy(const PolicyCost& cost, const Sensitivity& sensitivity, double bits);
/// Sum of shares times losses: what ChoosePolicy minimizes.
double PredictedLoss(const Policy& policy, const Sensitivity& sensitivity);

}  // namespace kvrazor::eval
