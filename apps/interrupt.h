// Ctrl-C and SIGTERM as a flag that long work looks at.
#pragma once

namespace kvrazor::apps {

/// From now on the first signal only sets the flag; a second one ends the program at once.
void CatchInterrupts();
bool WasInterrupted();
/// Throws Interrupted if the flag is set.
void ThrowIfInterrupted();

}  // namespace kvrazor::apps
