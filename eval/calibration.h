// What methods need to know of a model beforehand, measured on a text and kept in a file: for RotateKV the order of each layer's key
// channels.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "eval/calibration_file.h"
#include "eval/rope.h"
#include "ggml-backend.h"
#include "kvrazor/layout.h"

namespace kvrazor::eval {

/// 16 hexadecimal digits: sizes of the model's file(s), their first and last MiB and samples between. Throws Error.
std::string ModelFingerprint(const std::string& path);

/// Throws Error that names the file, what is wrong with it and what to do: unreadable, no such file of ours, of another version,
/// an order that is none, or made for another model than the one with `fingerprint`.
Calibration ReadCalibration(const std::string& path, const std::string& fingerprint);

/// Sums the key channels that a model computes for a text. Give OnNode and the object to MakeContext (llama.cpp's f16 cache).
class KeyChannelSums {
 public:
  static bool OnNode(ggml_tensor* node, bool ask, void* sums);
  /// After every llama_decode. Throws Error.
  void EndBatch();
  /// Everything but the model's name and fingerprint.
  Calibration Result() const;

 private:
  struct Layer {
    HeadShape shape;
    std::optional<Rope> rope;
    std::vector<float> rows;         // of the batch, after RoPE; empty once they are summed
    std::vector<int32_t> positions;  // of these rows
    std::vector<double> sums;        // [num_kv_heads * head_dim]
    int64_t tokens = 0;
  };
  void See(ggml_tensor* node);
  void Sum(Layer& layer);

  std::map<int, Layer> layers_;
  std::exception_ptr failure_;
};

}  // namespace kvrazor::eval
