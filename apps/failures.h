// Exit statuses, and the errors that lead to them.
#pragma once

#include "kvrazor/error.h"

namespace kvrazor::apps {

enum ExitStatus {
  kExitOk = 0,
  kExitFailed = 1,         ///< something went wrong at run time: a file, the model, memory
  kExitUsage = 2,          ///< the command line asks for something impossible
  kExitRequirement = 3,    ///< --require, or a limit given on the command line, is not met
  kExitInterrupted = 130,  ///< Ctrl-C or SIGTERM; nothing was written
};

/// Wrong command line, found after parsing: kExitUsage.
class UsageError : public Error {
 public:
  using Error::Error;
};

/// What the user required does not hold: kExitRequirement.
class RequirementError : public Error {
 public:
  using Error::Error;
};

/// The user stopped the program: kExitInterrupted.
class Interrupted : public Error {
 public:
  Interrupted() : Error("interrupted") {}
};

}  // namespace kvrazor::apps
