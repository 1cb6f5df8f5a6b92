// Start-up checks that the function tables are what the headers say and that a small cache computes what ggml computes.
#pragma once

#include <string>

#include "ggml-backend.h"

namespace kvrazor::ggml {

/// Compares entries of the private structures with what the public functions return. "" or one line.
std::string OffsetProblem(ggml_backend_dev_t device);

/// Runs one layer (SET_ROWS, FLASH_ATTN_EXT) on a cache of ours and on one of ggml's. The device must be patched. "" or
/// one line.
std::string SelfTestProblem(ggml_backend_dev_t device);

}  // namespace kvrazor::ggml
