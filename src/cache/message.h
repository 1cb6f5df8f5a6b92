// Error texts from parts of any printable type.
#pragma once

#include <sstream>
#include <string>

#include "kvrazor/error.h"

namespace kvrazor {

template <typename... Parts>
[[noreturn]] void Fail(const Parts&... parts) {
  std::ostringstream text;
  (text << ... << parts);
  throw Error(text.str());
}

}  // namespace kvrazor
