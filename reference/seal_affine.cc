#include "reference/seal_affine.h"

#include <algorithm>
#include <cmath>

#include "kvrazor/error.h"
#include "reference/half.h"

namespace kvrazor::reference {
namespace {

constexpr uint16_t kOneF16 = 0x3c00;

/// One group: its members' (token, channel), what they are, and where the parameters go.
struct Group {
  std::vector<int> tokens;
  std::vector<int> channels;
  std::vector<double> values;
  int64_t index = 0;
};

void SealGroup(const PageLayout& layout, int head, const Group& group, std::byte* page) {
  const AffineFit fit = FitAffine(group.values, layout.recipe);
  SetU16(layout, page, head, layout.scale_at, group.index, EncodeFiniteF16(fit.scale));
  SetU16(layout, page, head, layout.offset_at, group.index, EncodeFiniteF16(fit.offset + 0.0));  // no -0
  for (size_t i = 0; i < group.values.size(); ++i) {
    const int code = CodeOf(AffineCodeArgument(group.values[i], fit, layout.recipe), layout.recipe.bits);
    SetCode(layout, page, head, group.tokens[i], group.channels[i], code);
  }
}

}  // namespace

AffineFit FitAffine(const std::vector<double>& values, const SideRecipe& recipe) {
  AffineFit fit;
  if (values.empty()) return fit;
  const double least = *std::min_element(values.begin(), values.end());
  const double most = *std::max_element(values.begin(), values.end());
  fit.offset = least;
  if (recipe.zero_point == ZeroPoint::kFloatMin) fit.offset = DecodeF16(EncodeFiniteF16(least));
  const double clip = recipe.clip_percent / 100.0;
  const bool with_zero = recipe.zero_point == ZeroPoint::kRoundedWithZero;
  const double low = clip * (with_zero ? std::min(least, 0.0) : least);
  const double high = clip * (with_zero ? std::max(most, 0.0) : most);
  double scale = (high - low) / ((1 << recipe.bits) - 1);
  if (recipe.zero_point == ZeroPoint::kSymmetric)
    scale = clip * std::max(std::abs(least), std::abs(most)) / ((1 << (recipe.bits - 1)) - 1);
  const double stored_scale = DecodeF16(EncodeFiniteF16(scale));
  if (stored_scale == 0) return fit;
  if (recipe.zero_point == ZeroPoint::kFloatMin) {
    fit.scale = stored_scale;
    return fit;
  }
  fit.scale = scale;
  fit.zero_unrounded = recipe.zero_point == ZeroPoint::kSymmetric ? 1 << (recipe.bits - 1) : -low / fit.scale;
  fit.zero = RoundHalfEven(fit.zero_unrounded);
  fit.offset = -fit.zero * fit.scale;
  return fit;
}

double AffineCodeArgument(double x, const AffineFit& fit, const SideRecipe& recipe) {
  if (fit.scale == 0) return 0;
  if (recipe.zero_point == ZeroPoint::kFloatMin) return (x - fit.offset) / fit.scale;
  return x / fit.scale + fit.zero;
}

int CodeOf(double argument, int bits) {
  return static_cast<int>(std::clamp(RoundHalfEven(argument), 0.0, static_cast<double>((1 << bits) - 1)));
}

double TokenNorm(const PageLayout& layout, const Rows& rows, int token) {
  double sum = 0;
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    for (int c = 0; c < layout.shape.head_dim; ++c) sum += rows(token, h, c) * rows(token, h, c);
  }
  return std::sqrt(sum);
}

uint16_t StoredTokenNorm(double norm) {
  const uint16_t stored = EncodeFiniteF16(norm);
  return DecodeF16(stored) > 0 ? stored : kOneF16;
}

void SealAffine(const PageLayout& layout, const Rows& rows, const TokenMask& exact, std::byte* page) {
  const int dim = layout.shape.head_dim;
  const int size = layout.recipe.group_size;
  const bool per_channel = layout.recipe.axis == Axis::kPerChannel;
  if (per_channel && layout.side == Side::kValue) throw Error("seal: affine values are grouped per token.");

  std::vector<double> norm(kPageTokens, 1.0);
  if (layout.token_scale_at >= 0) {
    for (int t = 0; t < kPageTokens; ++t) {
      const uint16_t stored = exact.Test(t) ? kOneF16 : StoredTokenNorm(TokenNorm(layout, rows, t));
      SetTokenScale(layout, page, t, stored);
      norm[t] = DecodeF16(stored);
    }
  }
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    const int num_lines = per_channel ? dim : kPageTokens;  // channels, or tokens
    const int along = per_channel ? kPageTokens : dim;
    for (int line = 0; line < num_lines; ++line) {
      for (int first = 0; first < along; first += size) {
        Group group;
        group.index =
            int64_t{first / size} * num_lines + line;  // [128 / group_size][head_dim] or [head_dim / group_size][128]
        for (int i = first; i < first + size; ++i) {
          const int token = per_channel ? i : line;
          const int channel = per_channel ? line : i;
          if (exact.Test(token)) continue;
          group.tokens.push_back(token);
          group.channels.push_back(channel);
          group.values.push_back(rows(token, h, channel) / norm[token]);
        }
        SealGroup(layout, h, group, page);
      }
    }
  }
}

}  // namespace kvrazor::reference
