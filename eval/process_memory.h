// How much memory this process has taken.
#pragma once

#include <cstdint>

namespace kvrazor::eval {

/// Most bytes ever resident (VmHWM), mapped model file included. Throws Error if the system does not say.
int64_t PeakResidentBytes();

}  // namespace kvrazor::eval
