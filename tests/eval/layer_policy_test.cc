// Choosing widths by layer: bits as the pages store them, shares by hand, choices against all possible ones.
#include "eval/layer_policy.h"

#include <gmock/gmock.h>

#include <cmath>
#include <random>

#include "kvrazor/error.h"

namespace kvrazor::eval {
namespace {

using ::testing::DoubleNear;
using ::testing::HasSubstr;
using ::testing::Pointwise;

ModelShape MadeShape(int layers, int head_dim = 64) {
  ModelShape shape;
  shape.layers.assign(static_cast<size_t>(layers),
                      {.kind = LayerKind::kFull, .num_kv_heads = 2, .k_head_dim = head_dim, .v_head_dim = head_dim});
  return shape;
}

Sensitivity RandomSensitivity(const PolicyCost& cost, int groups, std::mt19937& random) {
  Sensitivity s;
  s.groups = MakeGroups(cost, groups);
  std::uniform_real_distribution<double> uniform(0.01, 1);
  std::vector<GroupLoss> k, v;
  for (size_t g = 0; g < s.groups.size(); ++g) {
    k.push_back({uniform(random), 0});
    v.push_back({uniform(random), 0});
  }
  s.key_shares = Shares(k);
  s.value_shares = Shares(v);
  for (std::vector<double>* losses : {&s.key_losses, &s.value_losses}) {
    for (size_t i = 0; i < KeyLevels().size(); ++i) losses->push_back(uniform(random));
    std::sort(losses->rbegin(), losses->rend());
    losses->back() = 0;
  }
  return s;
}

TEST(LayerPolicyTest, LevelsAscendInBits) {
  for (const int head_dim : {32, 64, 128, 256}) {
    const PolicyCost cost(MadeShape(1, head_dim));
    for (const Side side : {Side::kKey, Side::kValue}) {
      for (size_t level = 1; level < Levels(side).size(); ++level)
        EXPECT_GT(cost.Bits(0, side, level), cost.Bits(0, side, level - 1)) << head_dim << " " << level;
    }
  }
}

TEST(LayerPolicyTest, BitsAreThoseOfThePages) {
  const PolicyCost cost(MadeShape(4));
  const Recipe razor = ParseRecipe("razor-2");
  const double k = MakePageLayout(razor.k, Side::kKey, {2, 64}).bits_per_value();
  const double v = MakePageLayout(razor.v, Side::kValue, {2, 64}).bits_per_value();
  EXPECT_DOUBLE_EQ(cost.lowest(), (k + v) / 2);
  EXPECT_DOUBLE_EQ(cost.Bits(razor), cost.lowest());
  // Half of the layers have a third bit for their keys: 1/4 bit more over both sides.
  EXPECT_DOUBLE_EQ(cost.Bits(ParseRecipe("razor-2.5")), cost.lowest() + 0.25);
  EXPECT_DOUBLE_EQ(cost.Bits(cost.Uniform({3, 3})), cost.highest());
}

TEST(LayerPolicyTest, LayersThatCannotBePackedAreLeftOut) {
  ModelShape shape = MadeShape(6);
  shape.layers[2].k_head_dim = 80;
  shape.layers[3].kind = LayerKind::kWindow;
  const PolicyCost cost(shape);
  EXPECT_DOUBLE_EQ(cost.lowest(), PolicyCost(MadeShape(1)).lowest());
  EXPECT_THAT(MakeGroups(cost, 2), testing::ElementsAre(LayerGroup{0, 1}, LayerGroup{4, 5}));
  EXPECT_THAT(MakeGroups(cost, 100),
              testing::ElementsAre(LayerGroup{0, 0}, LayerGroup{1, 1}, LayerGroup{4, 4}, LayerGroup{5, 5}));
  EXPECT_DOUBLE_EQ(cost.Bits(ParseRecipe("razor-2;2-3=razor-3")), cost.lowest());
  for (LayerShape& layer : shape.layers) layer.k_head_dim = 80;
  EXPECT_THROW(PolicyCost{shape}, Error);
}

TEST(LayerPolicyTest, GroupsCoverEveryLayerOnce) {
  for (const int layers : {1, 7, 30}) {
    for (const int groups : {1, 2, 10, 30, 99}) {
      const PolicyCost cost(MadeShape(layers));
      int next = 0;
      for (const LayerGroup& g : MakeGroups(cost, groups)) {
        EXPECT_EQ(g.first, next);
        next = g.last + 1;
      }
      EXPECT_EQ(next, layers);
      EXPECT_LE(std::ssize(MakeGroups(cost, groups)), groups);
    }
  }
}

TEST(LayerPolicyTest, SharesShrinkByWhatIsNoise) {
  EXPECT_THAT(Shares({{3, 0}, {1, 0}}), Pointwise(DoubleNear(1e-12), {0.75, 0.25}));
  // Variance 2, of the measurement 1: half of the differences is kept.
  EXPECT_THAT(Shares({{3, 1}, {1, 1}}), Pointwise(DoubleNear(1e-12), {0.625, 0.375}));
  EXPECT_THAT(Shares({{3, 9}, {1, 9}}), Pointwise(DoubleNear(1e-12), {0.5, 0.5}));
  EXPECT_THAT(Shares({{1, 0}, {-0.5, 0}}), Pointwise(DoubleNear(1e-12), {1.0, 0.0}));
  EXPECT_THAT(Shares({{-1, 0}, {-1, 0}}), Pointwise(DoubleNear(1e-12), {0.5, 0.5}));
  EXPECT_THAT(Shares({{2, 1}}), Pointwise(DoubleNear(1e-12), {1.0}));
}

TEST(LayerPolicyTest, PolicyBecomesARecipeThatSaysTheSame) {
  std::mt19937 random(1);
  const PolicyCost cost(MadeShape(12));
  for (int trial = 0; trial < 20; ++trial) {
    Policy policy = cost.Uniform({});
    for (LevelPair& pair : policy) pair = {random() % 2 * 3, random() % 2};
    const Recipe recipe = PolicyRecipe(policy);
    EXPECT_EQ(ParseRecipe(ToText(recipe)), recipe);
    EXPECT_NEAR(cost.Bits(recipe), cost.Bits(policy), 1e-9);
    for (int layer = 0; layer < 12; ++layer) {
      const Recipe own = recipe.ForLayer(layer), want = ParseRecipe(UniformText(policy[static_cast<size_t>(layer)]));
      EXPECT_EQ(own.k, want.k) << layer;
      EXPECT_EQ(own.v, want.v) << layer;
    }
  }
}

// Greedy steps along convex levels are optimal for the bits they have used, so the choice is at least as good as the best
// possible one under a budget that is smaller by the largest step.
TEST(LayerPolicyTest, ChoosesAsWellAsTryingEverything) {
  std::mt19937 random(2);
  const PolicyCost cost(MadeShape(2));
  const size_t levels = KeyLevels().size();
  double largest_step = 0;
  for (const Side side : {Side::kKey, Side::kValue})
    largest_step = std::max(largest_step, cost.Bits(0, side, levels - 1) - cost.Bits(0, side, 0));
  for (int trial = 0; trial < 50; ++trial) {
    const Sensitivity s = RandomSensitivity(cost, 2, random);
    const double budget = std::uniform_real_distribution<double>(cost.lowest(), cost.highest())(random);
    const Policy chosen = ChoosePolicy(cost, s, budget);
    EXPECT_LE(cost.Bits(chosen), budget + 1e-9);
    double best_within = INFINITY, best_smaller = INFINITY;
    for (size_t i = 0; i < levels * levels * levels * levels; ++i) {
      const Policy any = {{i % levels, i / levels % levels},
                          {i / (levels * levels) % levels, i / (levels * levels * levels)}};
      const double loss = PredictedLoss(any, s), bits = cost.Bits(any);
      if (bits <= budget + 1e-9) best_within = std::min(best_within, loss);
      if (bits <= budget - largest_step) best_smaller = std::min(best_smaller, loss);
    }
    EXPECT_LE(PredictedLoss(chosen, s), best_smaller + 1e-9);
    EXPECT_GE(PredictedLoss(chosen, s), best_within - 1e-9);
  }
}

TEST(LayerPolicyTest, BitsGoWhereTheLossIs) {
  const PolicyCost cost(MadeShape(4));
  Sensitivity s;
  s.groups = MakeGroups(cost, 4);
  s.key_shares = {0.7, 0.1, 0.1, 0.1};
  s.value_shares = {0.25, 0.25, 0.25, 0.25};
  s.key_losses = {1, 0.99, 0.25, 0};  // the rank-one mean is not worth its bits
  s.value_losses = {0.01, 0.009, 0.001, 0};
  // One layer's keys more: those of layer 0; with two, of equal layers the last.
  EXPECT_EQ(ToText(PolicyRecipe(ChoosePolicy(cost, s, cost.lowest() + 0.125))), "razor-2;0=razor-2:k3");
  EXPECT_EQ(ToText(PolicyRecipe(ChoosePolicy(cost, s, cost.lowest() + 0.375))), "razor-2;0=razor-2:k4;3=razor-2:k3");
}

TEST(LayerPolicyTest, BudgetsOutOfReachAreRefused) {
  const PolicyCost cost(MadeShape(2));
  EXPECT_NO_THROW(CheckBudget(cost, cost.lowest()));
  EXPECT_NO_THROW(CheckBudget(cost, cost.highest()));
  for (const double bits : {1.0, cost.lowest() - 0.01, cost.highest() + 0.01, 16.0}) {
    try {
      CheckBudget(cost, bits);
      FAIL() << bits;
    } catch (const Error& e) {
      EXPECT_THAT(e.what(), HasSubstr(bits < 3 ? "too few" : "more than")) << bits;
      EXPECT_THAT(e.what(), HasSubstr("razor-2")) << bits;
    }
  }
}

}  // namespace
}  // namespace kvrazor::eval
