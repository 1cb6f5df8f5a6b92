// The PNG plots of `kvrazor eval analyze`.
#pragma once

#include <string>
#include <vector>

#include "apps/jsonl.h"
#include "eval/key_capture.h"

namespace kvrazor::apps {

/// Of the records of all layers, those worth a look: first, last, and the four whose keys spread most to small norms. Ascending.
std::vector<int> LayersWorthShowing(const Json& layers);

/// Plots of one layer, head -1: all heads. A list of {file, title, png (base64)}: norm per token, and channel by token maps of the
/// magnitudes of keys, of keys rotated and with their norms taken out (where head_dim is a power of two), and of values.
Json LayerPlots(int layer, int64_t head, const eval::StoredRows& keys, const eval::StoredRows& values);

}  // namespace kvrazor::apps
