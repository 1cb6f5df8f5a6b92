// What a KV-cache quantization method is, as data. A recipe says how keys and values are stored; it computes nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvrazor {

/// Tokens that are sealed together; every group size divides it.
inline constexpr int kPageTokens = 128;
/// Largest pool of outlier tokens, and most tokens that may be displaced from it.
inline constexpr int kMaxExactTokens = 16;
inline constexpr int kMaxExactExtraTokens = 4096;

/// How a group of values becomes codes and parameters (docs/numerics.md has the formulas).
enum class Codec {
  kF16,         ///< 16 bit, as written
  kAffine,      ///< x = scale * code + offset, 16-bit scale and offset per group
  kRazorKey,    ///< page mean (int16) + one 8-bit scale per token and head, codes by error feedback in the query metric
  kCodebook,    ///< 16-bit norm per token and head, codes into a fixed codebook of the normal distribution
  kRazorValue,  ///< 8-bit norm per token and head, 8-bit scale and int8 centre per channel and group of tokens
};

/// kPerChannel: a group is group_size consecutive tokens of one channel. kPerToken: group_size channels of one token.
enum class Axis { kPerChannel, kPerToken };

/// Affine quantizers (docs/numerics.md has the formulas).
enum class ZeroPoint {
  kFloatMin,         ///< "A": the smallest value of the group
  kRounded,          ///< "B": an integer number of scales
  kRoundedWithZero,  ///< "B0": B over a range that always contains 0
  kSymmetric,        ///< the same levels for every group, about 0
};

/// Factor taken out of a token's key before grouping; on reading it multiplies the logit.
enum class TokenScale {
  kNone,
  kAllHeads,  ///< L2 norm over all kv heads of the layer, 16 bit (OScaR)
};

/// One side, keys or values, of a recipe. Fields that a codec does not use keep their defaults.
struct SideRecipe {
  Codec codec = Codec::kF16;
  int bits = 16;       ///< width of a code: 2, 3 or 4 (16 with kF16)
  int group_size = 0;  ///< kAffine: values that share scale and offset; kRazorValue: tokens, 0 for the whole page
  Axis axis = Axis::kPerToken;
  ZeroPoint zero_point = ZeroPoint::kRounded;
  TokenScale token_scale = TokenScale::kNone;
  bool rotate = false;  ///< Hadamard rotation of each head (after RoPE for keys)
  /// kRazorKey: each token subtracts its own multiple of the page mean (16 bits more a token and head) instead of the mean.
  bool rank_one_mean = false;
  int clip_percent = 100;  ///< kAffine, not kFloatMin: both ends of a group's range times this, in hundredths
  /// Keys: quantized before RoPE, rotated over groups of heads, channels in a calibrated order (RotateKV). No packed cache reads
  /// such keys: shadow mode evaluates them (RequirePackable).
  bool before_rope = false;

  bool operator==(const SideRecipe&) const = default;
};

struct Recipe;

/// What the bounds of a LayerOverride count.
enum class LayerUnit {
  kIndex,    ///< layers first .. last, from 0
  kPercent,  ///< layers in [first %, last %) of the model's: of 30 layers, 50 to 100 are layers 15 .. 29
  kFromEnd,  ///< the last `first` layers
};

/// Some layers use `method` instead of the recipe's own sides.
struct LayerOverride {
  int first = 0;
  int last = 0;
  std::string method;  ///< recipe text without overrides of its own
  LayerUnit unit = LayerUnit::kIndex;

  bool Covers(int layer, int num_layers) const;
  bool operator==(const LayerOverride&) const = default;
};

/// A whole method: keys, values, and what stays in 16 bits.
struct Recipe {
  std::string name;  ///< as in the registry: "oscar", "razor-2", ...
  SideRecipe k;
  SideRecipe v;
  int residual_tokens = kPageTokens;  ///< a page is sealed once this many tokens in full pages stand behind it
  int sink_tokens = 0;                ///< first tokens of a sequence, kept in 16 bits for good
  /// Outlier tokens, kept in 16 bits for good: when keys are sealed, those of smallest norm so far (docs/numerics.md).
  int exact_tokens = 0;                  ///< size of the pool that they compete for; 0: none
  int exact_extra_tokens = 0;            ///< tokens that may be displaced from the pool before tracing stops
  int exact_first_layer = 0;             ///< layers below trace none
  std::vector<LayerOverride> overrides;  ///< the first that covers a layer holds

  bool operator==(const Recipe&) const = default;

  /// True when nothing is ever sealed (the control).
  bool is_f16() const { return k.codec == Codec::kF16 && v.codec == Codec::kF16; }

  /// True when some override needs the number of layers (razor-2.5: "the last half").
  bool depends_on_num_layers() const;

  /// The same recipe for a model of num_layers layers: every override by index. Those that cover no layer are left out.
  Recipe ForModel(int num_layers) const;

  /// The recipe of one layer, overrides applied. layer counts from 0.
  /// Throws Error if depends_on_num_layers(); ForModel resolves such recipes.
  Recipe ForLayer(int layer) const;
};

/// Reads `NAME[:OPTION,...][;LAYERS=NAME[:OPTION,...]]...`, for example
///   oscar    razor-2:sinks=8    oscar:k2g32,v2g32,residual=256,sinks=4    razor-2;0-1=f16    razor-2;50%-100%=razor-3;last2=f16
/// Options: k<bits>[g<group>], v<bits>[g<group>], residual=<tokens>, sinks=<tokens>, exact=<tokens>, exact-extra=<tokens>,
/// exact-from=<layer>; exact=0 takes the other two back.
/// Layers: N or N-M by index, P%-Q% by their share of the model's (Q left out: 100), last<N> from the end.
/// Throws Error, naming what was wrong and what is possible.
Recipe ParseRecipe(std::string_view text);

/// The shortest text that ParseRecipe turns into the same recipe.
std::string ToText(const Recipe& recipe);

/// Throws Error with the sentence that helps when a field or a combination is impossible.
void Validate(const Recipe& recipe);

/// Throws Error if keys of some layer are quantized before RoPE: only shadow mode evaluates such a recipe.
void RequirePackable(const Recipe& recipe);

/// A registered method (src/methods, one file each).
struct Method {
  std::string name;
  std::string summary;       ///< one line
  std::string source;        ///< paper or document
  std::string known_limits;  ///< one or two sentences
  Recipe recipe;
  std::string base = {};  ///< where the recipe has overrides: the method that it is on all other layers
};

/// All methods, in the order they are shown to people.
const std::vector<Method>& Methods();

/// Methods that no packed cache stores; shadow mode evaluates them. ParseRecipe knows their names, too.
const std::vector<Method>& ShadowMethods();

}  // namespace kvrazor
