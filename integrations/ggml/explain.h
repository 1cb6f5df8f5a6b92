// For people: how each layer of a cache is stored and why.
#pragma once

#include <string>

namespace kvrazor::ggml {

/// JSON array, one object for each side of each layer of the newest cache; see kvrazor_ggml_explain.
std::string ExplainNewestCache();

/// One line with everything that was counted since the last reset.
std::string StatsLine();

}  // namespace kvrazor::ggml
