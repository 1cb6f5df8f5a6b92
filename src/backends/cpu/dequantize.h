// Backend::Dequantize on the CPU.
#pragma once

#include "src/ops/page_set.h"

namespace kvrazor::cpu {

void Dequantize(const PageLayout& layout, const PageSide& page, int first, int last, float* out);

}  // namespace kvrazor::cpu
