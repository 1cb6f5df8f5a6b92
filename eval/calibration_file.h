// The contents of a calibration file: what is measured on a model once, for methods that need it.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "kvrazor/layout.h"

namespace kvrazor::eval {

struct Calibration {
  std::string model;        ///< file name, for people
  std::string fingerprint;  ///< of the model
  int64_t tokens = 0;       ///< read for it
  struct Layer {
    HeadShape shape;  ///< of the keys
    std::vector<int32_t>
        order;  ///< [num_kv_heads * head_dim] channels of the rotated keys before RoPE, ascending by their sums
  };
  std::map<int, Layer> layers;
};

/// JSON: {"format": "kvrazor-calibration", "version": 1, "model", "fingerprint", "tokens", "layers": [{"layer", "num_kv_heads",
/// "head_dim", "order"}]}.
std::string ToJson(const Calibration& calibration);

/// Of ToJson's text. Throws Error, without the file's name: damaged, no such file of ours, of another version, an order that is none.
Calibration ParseCalibration(std::string_view text);

}  // namespace kvrazor::eval
