#include "apps/help_format.h"

#include <sstream>

#include "apps/text_table.h"

namespace kvrazor::apps {
namespace {

constexpr size_t kWidth = 100;
constexpr size_t kNames = 30;  // column where descriptions begin

// `name` in the left column, the text beside it; below it if the name is too long.
std::string Entry(const std::string& name, const std::string& text) {
  std::string block = Wrapped(text, kWidth - kNames, std::string(kNames, ' '));
  if (block.empty()) return "  " + name + "\n";
  const std::string left = "  " + name;
  if (left.size() >= kNames) return left + "\n" + block;
  return left + block.substr(left.size());
}

}  // namespace

HelpFormat::HelpFormat() { column_width(kNames); }

std::string HelpFormat::make_option(const CLI::Option* option, bool is_positional) const {
  return Entry(make_option_name(option, is_positional) + make_option_opts(option), make_option_desc(option));
}

std::string HelpFormat::make_subcommand(const CLI::App* command) const {
  const std::string description = command->get_description();
  return Entry(command->get_display_name(true), description.substr(0, description.find('\n')));
}

std::string HelpFormat::make_description(const CLI::App* app) const {
  std::istringstream paragraphs(app->get_description());
  std::string text;
  for (std::string paragraph; std::getline(paragraphs, paragraph);) {
    if (!paragraph.empty()) text += Wrapped(paragraph, kWidth, "") + "\n";
  }
  return text;
}

}  // namespace kvrazor::apps
