#include <algorithm>
#include <cmath>
#include <string>

#include "reference/half.h"
#include "reference/seal_affine.h"
#include "reference/seal_razor_value.h"
#include "tests/conformance/cases.h"
#include "tests/conformance/judge.h"

namespace kvrazor::conformance {
namespace {

using reference::DecodeE5M3;
using reference::EncodeE5M3;
using reference::Line;
using reference::LineCandidate;

struct Channel {
  std::string name;
  std::vector<double> u;
  std::vector<int> codes;
  double error = 0;  // of a u
  uint8_t scale = 0;
  int centre = 0;
};

bool IsScaleOf(uint8_t stored, Interval x) { return EncodeE5M3(x.low) <= stored && stored <= EncodeE5M3(x.high); }

/// Could the stored parameters come from this line?
bool Fits(const Channel& channel, const Line& fitted, int bits) {
  const double count = static_cast<double>(channel.u.size());
  const double levels = (1 << bits) - 1;
  const auto [least, most] = std::minmax_element(channel.u.begin(), channel.u.end());
  const double half = (*most - *least) / 2 + channel.error;
  // Regression of n values of at most `half` on levels of at most L/2, both about their middle: two sums of n terms,
  // over the spread of the levels, which is at least one code apart: n - 1 equal ones and another have (n - 1) / n.
  const double scale_error = channel.error * levels + 4 * Gamma(count + 4) * half * levels * count;
  const double small = std::min(scale_error, 1e-4 * fitted.scale + channel.error * 4);
  const double middle_error = 2 * channel.error + Gamma(count + 4) * (half + std::abs(fitted.centre)) + levels * small;
  for (const double scale : {fitted.scale - small, fitted.scale, fitted.scale + small}) {
    const Line line = WithinReach(Line{std::max(scale, 0.0), fitted.centre});
    if (!IsScaleOf(channel.scale, Interval::Around(line.scale, small + Gamma(3) * line.scale))) continue;
    const double stored = DecodeE5M3(channel.scale);
    if (stored == 0) return channel.centre == 0;
    const double steps = 8 * line.centre / stored;
    const double error = 8 * middle_error / stored + Gamma(3) * std::abs(steps);
    const auto rounded = [](double x) { return std::clamp(reference::RoundHalfEven(x), -127.0, 127.0); };
    if (rounded(steps - error) <= channel.centre && channel.centre <= rounded(steps + error)) return true;
  }
  return false;
}

/// The fit with f32's ties decided one way, the other way, or as they fall: moving every value by a little decides
/// them.
std::vector<LineCandidate> Candidates(const Channel& channel, int bits) {
  std::vector<LineCandidate> all;
  const auto [least, most] = std::minmax_element(channel.u.begin(), channel.u.end());
  const double nudge = 4 * channel.error + 1e-6 * (*most - *least);
  for (const double by : {0.0, nudge, -nudge}) {
    std::vector<double> moved = channel.u;
    for (double& x : moved) {
      if (x != *least && x != *most) x += by;
    }
    const std::vector<LineCandidate> found = reference::RazorLineCandidates(moved, bits);
    double best = found.front().error;
    for (const LineCandidate& c : found) best = std::min(best, c.error);
    // Errors are ranked by what the line explains, a sum of n products over a sum of n squares, at most sum x^2 about
    // the middle.
    const double count = static_cast<double>(moved.size());
    double squares = 0;
    for (const double x : moved) squares += (x - (*least + *most) / 2) * (x - (*least + *most) / 2);
    for (const LineCandidate& c : found) {
      if (c.error <= best + Gamma(3 * count) * squares) all.push_back(c);
    }
  }
  return all;
}

void JudgeChannel(const Channel& channel, int bits, Verdict& verdict) {
  const auto [least, most] = std::minmax_element(channel.u.begin(), channel.u.end());
  const double stored = DecodeE5M3(channel.scale);
  const double centre = channel.centre * stored / 8;
  bool fits = *most - *least <= 8 * channel.error;  // noise: whatever reads back well
  if (fits) {
    for (size_t i = 0; i < channel.u.size(); ++i) {
      const double back = stored > 0 ? centre + stored * (channel.codes[i] - 0.5 * ((1 << bits) - 1)) : 0.0;
      // The last term: scales below the normal e5m3 are coarse.
      if (std::abs(back - channel.u[i]) > 16 * channel.error + std::abs(channel.u[i]) / 128 + 0x1p-14)
        verdict.Fault(channel.name + ": flat");
    }
  }
  for (const LineCandidate& c : fits ? std::vector<LineCandidate>{} : Candidates(channel, bits))
    fits = fits || Fits(channel, c.line, bits);
  if (!fits) verdict.Fault(channel.name + ": scale or centre");
  for (size_t i = 0; i < channel.u.size(); ++i) {
    const double argument = stored > 0 ? (channel.u[i] - centre) / stored + 0.5 * ((1 << bits) - 1) : 0.0;
    const double error =
        stored > 0 ? channel.error / stored + Gamma(4) * (std::abs(channel.u[i]) / stored + std::abs(argument) + 16)
                   : 0;
    if (!IsCodeNear(channel.codes[i], argument, error, bits))
      verdict.Fault(channel.name + ": code " + std::to_string(i));
  }
}

}  // namespace

void JudgeRazorValue(const Trial& trial, Verdict& verdict) {
  const PageLayout& layout = trial.layout;
  const int dim = layout.shape.head_dim;
  const int group_tokens = layout.recipe.group_size > 0 ? layout.recipe.group_size : kPageTokens;
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::vector<int> tokens;
    std::vector<double> norms(kPageTokens), row_errors(kPageTokens);
    for (int t = 0; t < kPageTokens; ++t) {
      const std::string name = "head " + std::to_string(h) + " token " + std::to_string(t);
      const uint8_t stored = reference::GetU8(layout, trial.page, h, layout.norm_at, t);
      if (trial.exact.Test(t)) {
        if (stored != 0) verdict.Fault(name + ": norm of an exact token");
        for (int c = 0; c < dim; ++c) {
          if (reference::GetCode(layout, trial.page, h, t, c) != 0) verdict.Fault(name + ": code of an exact token");
        }
        continue;
      }
      const double norm = reference::HeadNorm(trial.rows.Row(t, h));
      const double error = norm * (Gamma(dim + 2) / 2 + Gamma(std::log2(dim) + 4));
      if (!IsScaleOf(stored, Interval::Around(norm, error))) verdict.Fault(name + ": norm");
      tokens.push_back(t);
      norms[t] = DecodeE5M3(stored);
      row_errors[t] = RowError(trial, t, h);
    }
    for (int i = 0; i < kPageTokens / group_tokens * dim; ++i) {
      const int c = i % dim;
      const int first = i / dim * group_tokens;
      Channel channel;
      channel.name =
          "head " + std::to_string(h) + " tokens from " + std::to_string(first) + " channel " + std::to_string(c);
      channel.scale = reference::GetU8(layout, trial.page, h, layout.scale_at, i);
      channel.centre = static_cast<int8_t>(reference::GetU8(layout, trial.page, h, layout.centre_at, i));
      for (const int t : tokens) {
        if (t < first || t >= first + group_tokens) continue;
        channel.u.push_back(norms[t] > 0 ? trial.rows(t, h, c) / norms[t] : 0.0);
        channel.codes.push_back(reference::GetCode(layout, trial.page, h, t, c));
        if (norms[t] > 0)
          channel.error = std::max(channel.error, row_errors[t] / norms[t] + Gamma(2) * std::abs(channel.u.back()));
      }
      if (!channel.u.empty()) {
        JudgeChannel(channel, layout.recipe.bits, verdict);
      } else if (channel.scale != 0 || channel.centre != 0) {
        verdict.Fault(channel.name + ": parameters without tokens");
      }
    }
  }
}

}  // namespace kvrazor::conformance
