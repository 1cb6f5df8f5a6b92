// Models of a megabyte with random weights, one for each kind of cache and attention that llama.cpp knows. Their text is noise;
// their graphs are those of the real architectures.
#pragma once

#include <string>
#include <vector>

namespace kvrazor::ggml_test {

/// Names that WriteTinyModel takes.
std::vector<std::string> TinyModelNames();

/// Writes a whole .gguf file; the same name always gives the same bytes. Ends the program if the file cannot be written.
void WriteTinyModel(const std::string& name, const std::string& path);

/// A folder of the system's temporary ones, with all tiny models in it (<name>.gguf), removed with the object.
class TinyModelFolder {
 public:
  TinyModelFolder();
  ~TinyModelFolder();
  TinyModelFolder(const TinyModelFolder&) = delete;
  TinyModelFolder& operator=(const TinyModelFolder&) = delete;

  std::string Path(const std::string& name) const { return folder_ + "/" + name + ".gguf"; }

 private:
  std::string folder_;
};

}  // namespace kvrazor::ggml_test
