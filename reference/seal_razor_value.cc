#include "reference/seal_razor_value.h"

#include <algorithm>
#include <cmath>

#include "reference/half.h"
#include "reference/seal_affine.h"

namespace kvrazor::reference {
namespace {

constexpr double kClips[] = {1.0, 0.9};
constexpr int kRounds = 2;
constexpr double kReach = 14;  // of 127 / 8 = 15.9 scales: room for the rounding of the scale to 3 mantissa bits
constexpr double kStepsPerScale = 8;

/// Least squares of u on the codes; scale 0 if the codes are all equal.
LineCandidate Regress(const std::vector<double>& u, const std::vector<int>& codes, double middle_code) {
  const double count = static_cast<double>(u.size());
  double mean_u = 0;
  double mean_code = 0;
  for (size_t i = 0; i < u.size(); ++i) {
    mean_u += u[i] / count;
    mean_code += codes[i] / count;
  }
  double code_code = 0;
  double u_code = 0;
  for (size_t i = 0; i < u.size(); ++i) {
    code_code += (codes[i] - mean_code) * (codes[i] - mean_code);
    u_code += (u[i] - mean_u) * (codes[i] - mean_code);
  }
  const bool all_equal = std::all_of(codes.begin(), codes.end(), [&](int code) { return code == codes.front(); });
  LineCandidate fit{};
  fit.line.scale = all_equal ? 0.0 : u_code / code_code;
  fit.line.centre = mean_u + fit.line.scale * (middle_code - mean_code);
  for (size_t i = 0; i < u.size(); ++i) {
    const double e = u[i] - (fit.line.centre + fit.line.scale * (codes[i] - middle_code));
    fit.error += e * e;
  }
  return fit;
}

/// The values of one channel over the tokens of group `group`.
void SealChannel(const PageLayout& layout, int head, int group, int channel, const std::vector<int>& tokens,
                 const std::vector<double>& u, std::byte* page) {
  const int bits = layout.recipe.bits;
  const double middle_code = 0.5 * ((1 << bits) - 1);
  const std::vector<LineCandidate> candidates = RazorLineCandidates(u, bits);
  const Line line =
      WithinReach(std::min_element(candidates.begin(), candidates.end(), [](const auto& a, const auto& b) {
                    return a.error < b.error;
                  })->line);
  const uint8_t stored = EncodeE5M3(line.scale);
  const double scale = DecodeE5M3(stored);
  if (scale == 0) return;  // the page is zero already
  const double steps = std::clamp(RoundHalfEven(kStepsPerScale * line.centre / scale), -127.0, 127.0);
  const int64_t index = int64_t{group} * layout.shape.head_dim + channel;
  SetU8(layout, page, head, layout.scale_at, index, stored);
  SetU8(layout, page, head, layout.centre_at, index, static_cast<uint8_t>(static_cast<int8_t>(steps)));
  for (size_t i = 0; i < u.size(); ++i) {
    const double argument = (u[i] - steps * scale / kStepsPerScale) / scale + middle_code;
    SetCode(layout, page, head, tokens[i], channel, CodeOf(argument, bits));
  }
}

}  // namespace

std::vector<LineCandidate> RazorLineCandidates(const std::vector<double>& u, int bits) {
  const int levels = (1 << bits) - 1;
  const double least = *std::min_element(u.begin(), u.end());
  const double most = *std::max_element(u.begin(), u.end());
  const double middle = (most + least) / 2;
  const double half = (most - least) / 2;
  std::vector<LineCandidate> candidates;
  if (half == 0) return {{Line{0, least}, 0}};
  for (const double clip : kClips) {
    Line line{2 * clip * half / levels, middle};
    for (int round = 0; round < kRounds; ++round) {
      std::vector<int> codes;
      for (const double x : u) codes.push_back(CodeOf((x - line.centre) / line.scale + 0.5 * levels, bits));
      const LineCandidate fit = Regress(u, codes, 0.5 * levels);
      if (!(fit.line.scale > 0)) break;
      candidates.push_back(fit);
      line = fit.line;
    }
  }
  return candidates;
}

Line WithinReach(Line line) {
  if (line.scale >= std::abs(line.centre) / kReach) return line;
  const double scale = std::abs(line.centre) / kReach;
  return {scale, line.centre + scale / 2};
}

double HeadNorm(const std::vector<double>& row) {
  double sum = 0;
  for (const double x : row) sum += x * x;
  return std::sqrt(sum);
}

void SealRazorValue(const PageLayout& layout, const Rows& rows, const TokenMask& exact, std::byte* page) {
  const int group_tokens = layout.recipe.group_size > 0 ? layout.recipe.group_size : kPageTokens;
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    std::vector<double> norms(kPageTokens);
    for (int t = 0; t < kPageTokens; ++t) {
      if (exact.Test(t)) continue;
      const uint8_t stored = EncodeE5M3(HeadNorm(rows.Row(t, h)));
      SetU8(layout, page, h, layout.norm_at, t, stored);
      norms[t] = DecodeE5M3(stored);
    }
    for (int first = 0; first < kPageTokens; first += group_tokens) {
      std::vector<int> tokens;
      for (int t = first; t < first + group_tokens; ++t) {
        if (!exact.Test(t)) tokens.push_back(t);
      }
      if (tokens.empty()) continue;
      for (int c = 0; c < layout.shape.head_dim; ++c) {
        std::vector<double> u;
        for (const int t : tokens) u.push_back(norms[t] > 0 ? rows(t, h, c) / norms[t] : 0.0);
        SealChannel(layout, h, first / group_tokens, c, tokens, u, page);
      }
    }
  }
}

}  // namespace kvrazor::reference
