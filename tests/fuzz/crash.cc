#include <cstdio>
#include <cstdlib>

#include "tests/fuzz/seeds.h"

void kvrazor::fuzz::Crash(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}
