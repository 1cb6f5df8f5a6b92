// Second moment of the queries in float64.
#pragma once

#include <cstdint>
#include <vector>

#include "kvrazor/layout.h"
#include "reference/dequantize.h"
#include "src/ops/attend.h"

namespace kvrazor::reference {

/// What `qo_len` new tokens add to M = sum H q (H q)^T of each kv head, every stride-th token from the first on, all
/// query heads of the kv head: [num_kv_heads][head_dim][head_dim]. A query with |q|^2 of 2^100 and more, or not
/// finite, is left out.
std::vector<Sum> QueryMoment(HeadShape shape, const QueryRows& q, int qo_len, int num_qo_heads, int stride);

/// Query rows added to a kv head, the one that got most (rows that are left out may differ between heads).
int64_t QueryCount(HeadShape shape, const QueryRows& q, int qo_len, int num_qo_heads, int stride);

}  // namespace kvrazor::reference
