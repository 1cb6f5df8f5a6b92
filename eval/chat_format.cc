#include "eval/chat_format.h"

#include <fmt/format.h>

#include "chat.h"
#include "kvrazor/error.h"

namespace kvrazor::eval {

struct ChatFormat::Templates {
  common_chat_templates_ptr ptr;
};

ChatFormat::ChatFormat(const llama_model* model) : has_template_(llama_model_chat_template(model, nullptr) != nullptr) {
  if (!has_template_) return;
  try {
    templates_ = std::make_unique<Templates>(Templates{common_chat_templates_init(model, "")});
  } catch (const std::exception& e) {
    throw Error(fmt::format("the model's chat template cannot be read: {}. The file may be damaged.", e.what()));
  }
}

ChatFormat::~ChatFormat() = default;

std::string ChatFormat::Prompt(const std::vector<ChatMessage>& messages) const {
  if (!has_template_) {
    std::string text;
    for (const ChatMessage& message : messages)
      text += (message.role == "assistant" ? "Answer: " : "") + message.content + "\n\n";
    return text + "Answer:";
  }
  common_chat_templates_inputs inputs;
  for (const ChatMessage& message : messages) {
    common_chat_msg copy;
    copy.role = message.role;
    copy.content = message.content;
    inputs.messages.push_back(std::move(copy));
  }
  inputs.enable_thinking = false;
  try {
    return common_chat_templates_apply(templates_->ptr.get(), inputs).prompt;
  } catch (const std::exception& e) {
    throw Error(fmt::format("the model's chat template cannot be applied: {}", e.what()));
  }
}

}  // namespace kvrazor::eval
