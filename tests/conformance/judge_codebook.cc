#include <algorithm>
#include <cmath>
#include <string>

#include "reference/half.h"
#include "reference/seal_codebook.h"
#include "tests/conformance/cases.h"
#include "tests/conformance/judge.h"

namespace kvrazor::conformance {

void JudgeCodebook(const Trial& trial, Verdict& verdict) {
  const PageLayout& layout = trial.layout;
  const reference::GridLevels grid = reference::CodebookLevels(layout.recipe.bits);
  const int dim = layout.shape.head_dim;
  for (int h = 0; h < layout.shape.num_kv_heads; ++h) {
    for (int t = 0; t < kPageTokens; ++t) {
      const std::string name = "head " + std::to_string(h) + " token " + std::to_string(t);
      const uint16_t stored = reference::GetU16(layout, trial.page, h, layout.norm_at, t);
      const std::vector<double> y = trial.rows.Row(t, h);
      double square = 0, level_square = 0;
      for (const double x : y) square += x * x;
      const bool nothing = trial.exact.Test(t) || square == 0;
      if (nothing && stored != 0) verdict.Fault(name + ": norm of nothing");
      const std::vector<double> u = reference::CodebookArguments(y, grid.step);
      for (int c = 0; c < dim; ++c) {
        const int code = reference::GetCode(layout, trial.page, h, t, c);
        if (stored == 0) {
          if (code != 0) verdict.Fault(name + ": code without a norm");
          continue;
        }
        level_square += std::pow(grid.levels[static_cast<size_t>(code)], 2);
        // u = y * (sqrt(D) / step / n): four roundings, the norm's sum, and the error of y itself.
        const double error = RowError(trial, t, h) * std::sqrt(dim / square) / grid.step * (1 + std::sqrt(dim)) +
                             Gamma(dim / 2.0 + 8) * std::abs(u[c]);
        const int low = reference::CodebookCode(u[c] - error, grid);
        const int high = reference::CodebookCode(u[c] + error, grid);
        if (code < low || code > high) verdict.Fault(name + ": code " + std::to_string(c));
      }
      if (nothing) continue;
      // Matched to the codes that are stored; where none is, to the smallest levels there are.
      if (stored == 0) level_square = dim * std::pow(grid.levels[grid.levels.size() / 2], 2);
      const double norm = std::sqrt(square / level_square);
      const double error = norm * (Gamma(2.0 * dim + 8) + (RowError(trial, t, h) * std::sqrt(dim)) / std::sqrt(square));
      const double low = reference::DecodeF16(reference::EncodeFiniteF16(std::max(0.0, norm - error)));
      const double high = reference::DecodeF16(reference::EncodeFiniteF16(norm + error));
      const double got = reference::DecodeF16(stored);
      if (got > high || (got < low && stored != 0)) verdict.Fault(name + ": norm");
    }
  }
}

}  // namespace kvrazor::conformance
