// Messages to people, through the host program's own ggml log.
#pragma once

namespace kvrazor::ggml {

/// One line each; "kvrazor: " is put in front. KVRAZOR_LOG=0 drops Info, KVRAZOR_LOG=2 adds Debug.
void LogInfo(const char* format, ...) __attribute__((format(printf, 1, 2)));
void LogWarning(const char* format, ...) __attribute__((format(printf, 1, 2)));
void LogError(const char* format, ...) __attribute__((format(printf, 1, 2)));
void LogDebug(const char* format, ...) __attribute__((format(printf, 1, 2)));

}  // namespace kvrazor::ggml
