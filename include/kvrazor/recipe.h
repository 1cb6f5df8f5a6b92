// What a KV-cache quantization method is, as data. A recipe says how keys and values are stored; it computes nothing.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace kvrazor {

/// Tokens that are sealed together; every group size divides it.
inline constexpr int kPageTokens = 128;

/// How a group of values becomes codes and parameters (docs/numerics.md has the formulas).
enum class Codec {
  kF16,         ///< 16 bit, as written
  kAffine,      ///< x = scale * code + offset, 16-bit scale and offset per group
  kRazorKey,    ///< page mean (int16) + one 8-bit scale per token and head, codes by error feedback in the query metric
  kRazorValue,  ///< 8-bit norm per token and head, 8-bit scale and int8 centre per channel and page
};

/// kPerChannel: a group is group_size consecutive tokens of one channel. kPerToken: group_size channels of one token.
enum class Axis { kPerChannel, kPerToken };

/// Affine quantizers of methods.md 0.1: "A" keeps the float minimum, "B" an integer zero point.
enum class ZeroPoint { kFloatMin, kRounded };

/// Factor taken out of a token's key before grouping; on reading it multiplies the logit.
enum class TokenScale {
  kNone,
  kAllHeads,  ///< L2 norm over all kv heads of the layer, 16 bit (OScaR)
};

/// One side, keys or values, of a recipe. Fields that a codec does not use keep their defaults.
struct SideRecipe {
  Codec codec = Codec::kF16;
  int bits = 16;       ///< width of a code: 2 or 4 (16 with kF16)
  int group_size = 0;  ///< kAffine: values that share scale and offset
  Axis axis = Axis::kPerToken;
  ZeroPoint zero_point = ZeroPoint::kRounded;
  TokenScale token_scale = TokenScale::kNone;
  bool rotate = false;  ///< Hadamard rotation of each head (after RoPE for keys)

  bool operator==(const SideRecipe&) const = default;
};

struct Recipe;

/// Layers [first, last] use `method` instead of the recipe's own sides.
struct LayerOverride {
  int first = 0;
  int last = 0;
  std::string method;  ///< recipe text without overrides of its own
  bool operator==(const LayerOverride&) const = default;
};

/// A whole method: keys, values, and what stays in 16 bits.
struct Recipe {
  std::string name;  ///< as in the registry: "oscar", "razor-2", ...
  SideRecipe k;
  SideRecipe v;
  int residual_tokens = kPageTokens;  ///< a page is sealed once this many tokens in full pages stand behind it
  int sink_tokens = 0;                ///< first tokens of a sequence, kept in 16 bits for good
  std::vector<LayerOverride> overrides;

  bool operator==(const Recipe&) const = default;

  /// True when nothing is ever sealed (the control).
  bool is_f16() const { return k.codec == Codec::kF16 && v.codec == Codec::kF16; }

  /// The recipe of one layer, overrides applied. layer counts from 0.
  Recipe ForLayer(int layer) const;
};

/// Reads `NAME[:OPTION,...][;FIRST-LAST=NAME[:OPTION,...]]...`, for example
///   oscar    razor-2:sinks=8    oscar:k2g32,v2g32,residual=256,sinks=4    razor-2;0-1=f16
/// Options: k<bits>[g<group>], v<bits>[g<group>], residual=<tokens>, sinks=<tokens>.
/// Throws Error, naming what was wrong and what is possible.
Recipe ParseRecipe(std::string_view text);

/// The shortest text that ParseRecipe turns into the same recipe.
std::string ToText(const Recipe& recipe);

/// Throws Error with the sentence that helps when a field or a combination is impossible.
void Validate(const Recipe& recipe);

/// A registered method (src/methods, one file each).
struct Method {
  std::string name;
  std::string summary;       ///< one line
  std::string source;        ///< paper or document
  std::string known_limits;  ///< one or two sentences
  Recipe recipe;
};

/// All methods, in the order they are shown to people.
const std::vector<Method>& Methods();

}  // namespace kvrazor
