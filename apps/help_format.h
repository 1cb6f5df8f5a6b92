// How --help looks: text wrapped to the terminal's width, one line a command in lists.
#pragma once

#include <CLI/CLI.hpp>
#include <string>

namespace kvrazor::apps {

/// A command's description is a short line, a newline and paragraphs; lists of commands show the line, its own help all.
class HelpFormat : public CLI::Formatter {
 public:
  HelpFormat();
  std::string make_option(const CLI::Option* option, bool is_positional) const override;
  std::string make_subcommand(const CLI::App* command) const override;
  std::string make_description(const CLI::App* app) const override;
};

}  // namespace kvrazor::apps
