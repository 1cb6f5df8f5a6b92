// Every op in float64 with plain loops, slow and plain on purpose: the truth that tests hold the kernels against. It
// shares no arithmetic with src/; only structs and byte offsets. Results that an op returns in f32 are rounded once,
// at the end.
#pragma once

#include "src/ops/backend.h"

namespace kvrazor {

const Backend& ReferenceBackend();

}  // namespace kvrazor
