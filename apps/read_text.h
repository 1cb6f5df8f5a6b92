// Text given by the user.
#pragma once

#include <string>

namespace kvrazor::apps {

/// The whole file; "-" is stdin. Throws Error if it cannot be read or is empty.
std::string ReadTextFile(const std::string& path);

}  // namespace kvrazor::apps
