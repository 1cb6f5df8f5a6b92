#include "integrations/ggml/log.h"

#include <cstdarg>
#include <cstdio>
#include <cstdlib>

#include "ggml-impl.h"

namespace kvrazor::ggml {
namespace {

int Verbosity() {
  static const int verbosity = [] {
    const char* text = std::getenv("KVRAZOR_LOG");
    return text ? std::atoi(text) : 1;
  }();
  return verbosity;
}

void Log(ggml_log_level level, const char* format, va_list args) {
  char line[1024];
  std::vsnprintf(line, sizeof(line), format, args);
  ggml_log_internal(level, "kvrazor: %s\n", line);
}

}  // namespace

#define KVRAZOR_DEFINE_LOG(name, level, verbosity) \
  void name(const char* format, ...) {             \
    if (Verbosity() < (verbosity)) return;         \
    va_list args;                                  \
    va_start(args, format);                        \
    Log(level, format, args);                      \
    va_end(args);                                  \
  }

KVRAZOR_DEFINE_LOG(LogInfo, GGML_LOG_LEVEL_INFO, 1)
KVRAZOR_DEFINE_LOG(LogWarning, GGML_LOG_LEVEL_WARN, 0)
KVRAZOR_DEFINE_LOG(LogError, GGML_LOG_LEVEL_ERROR, 0)
KVRAZOR_DEFINE_LOG(LogDebug, GGML_LOG_LEVEL_INFO, 2)

}  // namespace kvrazor::ggml
