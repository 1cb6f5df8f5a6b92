// Backend::AddQueries on the CPU.
#pragma once

#include "src/ops/backend.h"

namespace kvrazor::cpu {

/// Rows that are not finite, or longer than 2^50, are left out: one of them would decide the metric for good.
void AddQueries(SecondMoment& moment, const QueryRows& q, int qo_len, int num_qo_heads, int stride);

}  // namespace kvrazor::cpu
