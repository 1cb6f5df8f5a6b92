// Attention of the CPU backend: Highway kernels, instruction set chosen at run time (attend.cc opens with the data flow).
#pragma once

#include "kvrazor/executor.h"
#include "src/ops/attend.h"

namespace kvrazor::cpu {

/// See Backend::Attend. args has passed CheckAttendArgs. The result does not depend on the executor's number of threads.
/// Throws Error if no kernel has the shape.
void Attend(const AttendArgs& args, Executor& executor);

}  // namespace kvrazor::cpu
