#include "integrations/ggml/version_guard.h"

#include "ggml.h"

namespace kvrazor::ggml {

GgmlVersion BuiltForGgml() { return {KVRAZOR_GGML_VERSION, KVRAZOR_GGML_COMMIT}; }

GgmlVersion RunningGgml() { return {ggml_version(), ggml_commit()}; }

std::string VersionProblem(const GgmlVersion& built, const GgmlVersion& running) {
  const auto text = [](const GgmlVersion& v) { return v.version + " (commit " + v.commit + ")"; };
  if (built.version == running.version && built.commit == running.commit) return "";
  return "built for ggml " + text(built) + ", running in " + text(running) +
         ": left untouched. Rebuild with -DKVRAZOR_LLAMA_SOURCE_DIR=<the sources of this llama.cpp>";
}

}  // namespace kvrazor::ggml
