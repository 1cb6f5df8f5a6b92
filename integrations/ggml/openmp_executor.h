// Threads for our nodes: the ones that ggml's CPU backend uses, so that two pools never compete for the cores.
#pragma once

#include <memory>

#include "kvrazor/executor.h"

namespace kvrazor::ggml {

/// inner_uses_openmp: the CPU backend was built with OpenMP; then its team of threads is shared (one libgomp in a
/// process). Otherwise, or when this library was built without OpenMP, a pool of our own whose threads sleep when idle.
std::unique_ptr<Executor> MakeInnerExecutor(int num_threads, bool inner_uses_openmp);

}  // namespace kvrazor::ggml
