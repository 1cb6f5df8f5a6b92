// How kvrazor reports misuse and expected outcomes.
#pragma once

#include <stdexcept>
#include <string>

namespace kvrazor {

/// An outcome that a correct program must be ready for. Nothing was changed when it is not kOk.
enum class Status {
  kOk = 0,
  kOutOfPages,  ///< the pool has no page left: free a sequence and call again
};

/// Misuse or bad input: the message says what was asked, what is possible and what to do.
class Error : public std::runtime_error {
 public:
  using std::runtime_error::runtime_error;
};

}  // namespace kvrazor
