// How the C interfaces of the GPU benchmarks report errors: an exception becomes a status and its text.
#pragma once

#include <cstring>
#include <exception>

namespace kvrazor::cuda {

/// Runs fn; an exception becomes 1 and its text, cut to error_size.
template <class Fn>
int Guard(char* error, int error_size, Fn fn) {
  try {
    fn();
    return 0;
  } catch (const std::exception& e) {
    if (error && error_size > 0) {
      std::strncpy(error, e.what(), static_cast<size_t>(error_size) - 1);
      error[error_size - 1] = '\0';
    }
    return 1;
  }
}

}  // namespace kvrazor::cuda
