// write_tiny_models FOLDER: all tiny models as files, for tests that start programs.
#include <cstdio>
#include <filesystem>
#include <string>

#include "tests/integrations/ggml/tiny_model.h"

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: %s FOLDER\n", argv[0]);
    return 2;
  }
  const std::string folder = argv[1];
  std::filesystem::create_directories(folder);
  for (const std::string& name : kvrazor::ggml_test::TinyModelNames())
    kvrazor::ggml_test::WriteTinyModel(name, folder + "/" + name + ".gguf");
  return 0;
}
