// Attaches to the CPU device that ggml has registered by replacing entries of its function tables in place. Nothing
// else changes: device list, buffer types, host buffers, repacked weights and every other program path stay what they
// were.
#pragma once

#include <string>

namespace kvrazor::ggml {

/// Attaches once; later calls return the first result. "" or one line that says why the host was left untouched.
const std::string& AttachToCpuDevice();

}  // namespace kvrazor::ggml
