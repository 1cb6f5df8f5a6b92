#include "apps/machine.h"

#include <gtest/gtest.h>

namespace kvrazor::apps {
namespace {

TEST(MachineTest, CommandsCanBePastedIntoAShell) {
  EXPECT_EQ(CommandText({"kvrazor", "plan", "a b.gguf", "--memory=24G", "it's", ""}),
            "kvrazor plan 'a b.gguf' --memory=24G 'it'\\''s' ''");
}

TEST(MachineTest, SaysSomething) {
  EXPECT_GE(NumProcessors(), 1);
  EXPECT_NE(MachineText().find("CPUs"), std::string::npos);
  EXPECT_FALSE(CommitText().empty());
}

}  // namespace
}  // namespace kvrazor::apps
