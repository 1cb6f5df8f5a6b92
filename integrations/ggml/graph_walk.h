// Computes a graph: nodes on packed tensors here, ranges of all others by the inner backend.
#pragma once

#include <functional>

#include "ggml-backend.h"
#include "ggml-impl.h"
#include "kvrazor/executor.h"

namespace kvrazor::ggml {

/// inner: the backend's own graph_compute.
ggml_status WalkGraph(ggml_cgraph* graph, Executor& executor, const std::function<ggml_status(ggml_cgraph*)>& inner);

/// Called for every node that ggml asks the device about, before data exists: takes head counts from attention nodes
/// and finds caches that are used in a way that cannot be packed (-fa off).
void InspectNode(const ggml_tensor* node);

}  // namespace kvrazor::ggml
