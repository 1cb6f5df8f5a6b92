// Files that appear whole or not at all.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace kvrazor::apps {

/// Creates the folder and its parents if needed and checks that files can be written there. Throws Error.
void PrepareFolder(const std::string& folder);

/// Writes all the files beside their targets, flushes them to the disk, and only then renames them into place: a full disk
/// or an interruption leaves what was there before. Throws Error.
void WriteAtomically(const std::vector<std::pair<std::string, std::string>>& path_and_content);

}  // namespace kvrazor::apps
