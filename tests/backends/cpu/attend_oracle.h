// Attention in float64 for the tests of the CPU kernels: decodes the bytes of a page itself, from the text of kvrazor/layout.h,
// and carries an error bound with every sum. It shares nothing with src/ but the structs.
//
// Bounds (u = 2^-24, Gamma(n) = n u / (1 - n u), Higham 2002, section 3.1):
//   sums of n f32 products          Gamma(n + rounding of the parameters) * sum of magnitudes
//   operand in 16-bit fixed point   each operand is off by at most largest / 65024, times the codes it meets
//   softmax                         an error e of a logit changes its weight by a factor e^e
#pragma once

#include <cstdint>
#include <vector>

#include "src/ops/attend.h"

namespace kvrazor::test {

struct Bounded {
  double value = 0;
  double error = 0;
};

struct OracleResult {
  std::vector<Bounded> out;  // [qo_len][num_qo_heads][value_dim]
  std::vector<Bounded> lse;  // [qo_len][num_qo_heads]
};

OracleResult OracleAttend(const AttendArgs& args);

}  // namespace kvrazor::test
