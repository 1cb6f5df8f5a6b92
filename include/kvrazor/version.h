#pragma once

namespace kvrazor {

/// "MAJOR.MINOR.PATCH" of the library that is running.
const char* Version();

}  // namespace kvrazor
