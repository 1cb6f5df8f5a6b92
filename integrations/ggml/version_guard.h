// The function tables that are patched are private to ggml: only the version that this library was built for is
// touched.
#pragma once

#include <string>

namespace kvrazor::ggml {

struct GgmlVersion {
  std::string version;  ///< "0.25.3"
  std::string commit;   ///< "unknown" for sources without git history
};

GgmlVersion BuiltForGgml();
GgmlVersion RunningGgml();

/// "" if they match, else one line for people.
std::string VersionProblem(const GgmlVersion& built, const GgmlVersion& running);

}  // namespace kvrazor::ggml
