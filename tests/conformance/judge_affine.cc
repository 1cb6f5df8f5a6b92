#include <algorithm>
#include <cmath>
#include <string>

#include "reference/half.h"
#include "reference/seal_affine.h"
#include "tests/conformance/cases.h"
#include "tests/conformance/judge.h"

namespace kvrazor::conformance {
namespace {

using reference::DecodeF16;
using reference::EncodeFiniteF16;
using reference::RoundHalfEven;

/// Is the stored f16 the rounding of some value in the interval? (Rounding is monotone.)
bool IsRoundingOf(uint16_t stored, Interval x) {
  return Interval{DecodeF16(EncodeFiniteF16(x.low)), DecodeF16(EncodeFiniteF16(x.high))}.Contains(DecodeF16(stored));
}

struct Group {
  std::string name;
  std::vector<double> values;
  std::vector<int> codes;
  double error = 0;  // of a value
  uint16_t scale = 0;
  uint16_t offset = 0;
};

void JudgeFloatMin(const Group& group, Interval low, Interval scale, int bits, Verdict& verdict) {
  if (!IsRoundingOf(group.scale, scale)) verdict.Fault(group.name + ": scale");
  if (!IsRoundingOf(group.offset, low)) verdict.Fault(group.name + ": offset");
  const double s = DecodeF16(group.scale);
  const double offset = DecodeF16(group.offset);
  for (size_t i = 0; i < group.values.size(); ++i) {
    // (x - offset) / s from stored, exact s and offset: a difference, an inverse, a product.
    const double argument = s > 0 ? (group.values[i] - offset) / s : 0;
    const double error = s > 0 ? group.error / s + Gamma(4) * std::abs(argument) : 0;
    if (!IsCodeNear(group.codes[i], argument, error, bits)) verdict.Fault(group.name + ": code " + std::to_string(i));
  }
}

/// One zero point: does everything fit?
bool Fits(const Group& group, double zero, double scale, double scale_error, int bits) {
  if (!IsRoundingOf(group.offset, Interval::Around(-zero * scale, std::abs(zero) * (scale_error + Gamma(1) * scale))))
    return false;
  for (size_t i = 0; i < group.values.size(); ++i) {
    const double x = group.values[i] / scale;
    const double error = group.error / scale + std::abs(x) * scale_error / scale + Gamma(6) * (1 << bits);
    if (!IsCodeNear(group.codes[i], x + zero, error, bits)) return false;
  }
  return true;
}

/// The rounded kinds. `least` is the smallest value; low and scale are what its kind makes of the range.
void JudgeRounded(const Group& group, const SideRecipe& recipe, double least, double low, Interval scale,
                  Verdict& verdict) {
  const int bits = recipe.bits;
  if (!IsRoundingOf(group.scale, scale)) return verdict.Fault(group.name + ": scale");
  if (DecodeF16(group.scale) == 0) {
    if (!IsRoundingOf(group.offset, Interval::Around(least, group.error)))
      verdict.Fault(group.name + ": offset of a flat group");
    for (const int code : group.codes)
      if (code != 0) return verdict.Fault(group.name + ": code of a flat group");
    return;
  }
  const double s = (scale.low + scale.high) / 2;
  const double s_error = (scale.high - scale.low) / 2;
  if (s_error > s / 8) {  // the range is noise: any grid over it will do
    for (size_t i = 0; i < group.values.size(); ++i) {
      const double back = DecodeF16(group.scale) * group.codes[i] + DecodeF16(group.offset);
      const double clipped = (1 - recipe.clip_percent / 100.0) * std::abs(group.values[i]);
      const double allowed =
          (1 << bits) * (s + s_error) + 2 * group.error + 0x1p-10 * std::abs(group.values[i]) + clipped;
      if (std::abs(back - group.values[i]) > allowed) return verdict.Fault(group.name + ": value of a noisy group");
    }
    return;
  }
  const bool symmetric = recipe.zero_point == ZeroPoint::kSymmetric;
  const double zero = symmetric ? 1 << (bits - 1) : -low / s;
  const double zero_error = symmetric ? 0.0 : group.error / s + std::abs(zero) * (s_error / s + Gamma(2));
  for (double z = RoundHalfEven(zero - zero_error); z <= RoundHalfEven(zero + zero_error); ++z) {
    if (Fits(group, z, s, s_error, bits)) return;
  }
  verdict.Fault(group.name + ": offset or codes");
}

/// Checks the norms and fills in what was stored.
std::vector<double> JudgeNorms(const Trial& trial, Verdict& verdict) {
  const PageLayout& layout = trial.layout;
  std::vector<double> norms(kPageTokens, 1.0);
  if (layout.token_scale_at < 0) return norms;
  for (int t = 0; t < kPageTokens; ++t) {
    const uint16_t stored = reference::GetTokenScale(layout, trial.page, t);
    norms[t] = DecodeF16(stored);
    const double norm = trial.exact.Test(t) ? 1.0 : reference::TokenNorm(layout, trial.rows, t);
    // Squares of all heads, added in any order; the root halves the relative error. The rotation keeps norms.
    const double error =
        norm * (Gamma(static_cast<double>(layout.row_values()) + 2) / 2 + Gamma(std::log2(layout.shape.head_dim) + 4));
    const Interval allowed = {DecodeF16(reference::StoredTokenNorm(norm - error)),
                              DecodeF16(reference::StoredTokenNorm(norm + error))};
    if (!allowed.Contains(norms[t])) verdict.Fault("norm of token " + std::to_string(t));
  }
  return norms;
}

}  // namespace

void JudgeAffine(const Trial& trial, Verdict& verdict) {
  const PageLayout& layout = trial.layout;
  const SideRecipe& recipe = layout.recipe;
  const bool per_channel = recipe.axis == Axis::kPerChannel;
  const int num_lines = per_channel ? layout.shape.head_dim : kPageTokens;
  const int along = per_channel ? kPageTokens : layout.shape.head_dim;
  const std::vector<double> norms = JudgeNorms(trial, verdict);
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::vector<double> row_error;
    for (int t = 0; t < kPageTokens; ++t) row_error.push_back(RowError(trial, t, h));
    for (int line = 0; line < num_lines; ++line) {
      for (int first = 0; first < along; first += recipe.group_size) {
        const int64_t index = int64_t{first / recipe.group_size} * num_lines + line;
        Group group;
        group.name = "head " + std::to_string(h) + " line " + std::to_string(line) + " from " + std::to_string(first);
        group.scale = reference::GetU16(layout, trial.page, h, layout.scale_at, index);
        group.offset = reference::GetU16(layout, trial.page, h, layout.offset_at, index);
        for (int i = first; i < first + recipe.group_size; ++i) {
          const int token = per_channel ? i : line;
          const int channel = per_channel ? line : i;
          const int code = reference::GetCode(layout, trial.page, h, token, channel);
          if (trial.exact.Test(token)) {
            if (code != 0) verdict.Fault(group.name + ": code of an exact token");
            continue;
          }
          const double x = trial.rows(token, h, channel) / norms[token];
          group.values.push_back(x);
          group.codes.push_back(code);
          const double divided = layout.token_scale_at >= 0 ? Gamma(3) * std::abs(x) : 0.0;
          group.error = std::max(group.error, row_error[token] / norms[token] + divided);
        }
        if (group.values.empty()) {
          if (group.scale != 0 || group.offset != 0) verdict.Fault(group.name + ": parameters of exact tokens");
          continue;
        }
        const double least = *std::min_element(group.values.begin(), group.values.end());
        const double most = *std::max_element(group.values.begin(), group.values.end());
        const double clip = recipe.clip_percent / 100.0;
        const bool with_zero = recipe.zero_point == ZeroPoint::kRoundedWithZero;
        const double low = clip * (with_zero ? std::min(least, 0.0) : least);
        const double high = clip * (with_zero ? std::max(most, 0.0) : most);
        const bool symmetric = recipe.zero_point == ZeroPoint::kSymmetric;
        const double steps = symmetric ? (1 << (recipe.bits - 1)) - 1 : (1 << recipe.bits) - 1;
        const double scale = (symmetric ? clip * std::max(std::abs(least), std::abs(most)) : high - low) / steps;
        const double clip_error = Gamma(2) * (std::abs(low) + std::abs(high)) / steps;
        const Interval scales =
            Interval::Around(scale, 2 * group.error / steps + Gamma(4) * scale + (clip < 1 ? clip_error : 0.0));
        if (recipe.zero_point == ZeroPoint::kFloatMin) {
          JudgeFloatMin(group, Interval::Around(low, group.error), scales, recipe.bits, verdict);
        } else {
          JudgeRounded(group, recipe, least, low, scales, verdict);
        }
      }
    }
  }
}

}  // namespace kvrazor::conformance
