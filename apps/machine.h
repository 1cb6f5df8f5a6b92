// Where and with what a measurement was made.
#pragma once

#include <string>
#include <vector>

namespace kvrazor::apps {

/// Processor, processors this process may use, memory, system: one line.
std::string MachineText();
/// Commit this program was built from, with "-dirty" if files were changed; "unknown" outside a git checkout.
std::string CommitText();
/// Processors that this process may use.
int NumProcessors();
/// The command line, quoted for a shell.
std::string CommandText(const std::vector<std::string>& arguments);

}  // namespace kvrazor::apps
