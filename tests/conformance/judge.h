// Are sealed bytes what the text defines, up to ties? A backend computes in f32, the reference in float64; where a
// value lies within the error of f32 from a rounding boundary, either neighbour is right. The judge recomputes every
// parameter and code in float64 and accepts exactly the neighbours that such an error explains. Each step starts from
// what the page itself stores of the steps before (a code from the stored scale, say), so that one tie excuses nothing
// but itself.
#pragma once

#include <cstddef>
#include <string>
#include <vector>

#include "reference/codes.h"
#include "src/ops/backend.h"

namespace kvrazor::conformance {

struct Verdict {
  std::vector<std::string> faults;  // the first few
  int64_t num_faults = 0;

  void Fault(std::string what) {
    if (++num_faults <= 5) faults.push_back(std::move(what));
  }
  std::string Text() const;
};

struct Interval {
  double low = 0;
  double high = 0;
  static Interval Around(double middle, double error) { return {middle - error, middle + error}; }
  bool Contains(double x) const { return low <= x && x <= high; }
};

/// What all judges know of a page.
struct Trial {
  const PageLayout& layout;
  const TokenMask& exact;
  const reference::Rows& rows;  // float64, rotated
  const f16_bits* source;       // what they were made from
  const SecondMoment* moment;
  const std::byte* page;
};

/// Largest error of a backend's f32 value of (token, head, any channel) against Trial::rows: each is a rotation's sum
/// of head_dim terms, added pairwise, times two rounded factors.
double RowError(const Trial& trial, int token, int head);

void JudgeAffine(const Trial& trial, Verdict& verdict);
void JudgeCodebook(const Trial& trial, Verdict& verdict);
void JudgeRazorKey(const Trial& trial, Verdict& verdict);
void JudgeRazorValue(const Trial& trial, Verdict& verdict);

/// Is `code` the code of some argument within `error` of `argument`?
bool IsCodeNear(int code, double argument, double error, int bits);

/// Squared error of what the page stores, over the tokens that are not exact, in float64 and the rotated basis.
double SquaredError(const Trial& trial);
/// The same in the metric of the queries, sum of e^T A e, razor keys.
double MetricError(const Trial& trial);

}  // namespace kvrazor::conformance
