// A conversation as the text that a model expects (its chat template).
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "llama.h"

namespace kvrazor::eval {

struct ChatMessage {
  std::string role;  ///< "system", "user" or "assistant"
  std::string content;
};

class ChatFormat {
 public:
  explicit ChatFormat(const llama_model* model);
  ~ChatFormat();

  /// False if the model brings no template: conversations are then written as plain text.
  bool has_template() const { return has_template_; }

  /// The conversation and the beginning of the assistant's turn. Throws Error if the model's template cannot be applied.
  std::string Prompt(const std::vector<ChatMessage>& messages) const;

 private:
  struct Templates;
  std::unique_ptr<Templates> templates_;
  bool has_template_ = false;
};

}  // namespace kvrazor::eval
