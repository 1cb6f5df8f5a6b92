// Calibration files: any bytes either are a calibration, whose orders name every channel once and whose text reads back as the same,
// or throw Error.
#include <algorithm>
#include <string_view>

#include "eval/calibration_file.h"
#include "kvrazor/error.h"
#include "tests/fuzz/seeds.h"

using namespace kvrazor;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  eval::Calibration calibration;
  try {
    calibration = eval::ParseCalibration({reinterpret_cast<const char*>(data), size});
  } catch (const Error& error) {
    if (std::string_view(error.what()).empty()) fuzz::Crash("an error without a reason");
    return 0;
  }
  for (const auto& [index, layer] : calibration.layers) {
    const int64_t channels = int64_t{layer.shape.num_kv_heads} * layer.shape.head_dim;
    std::vector<bool> seen(static_cast<size_t>(channels));
    for (const int32_t channel : layer.order) seen.at(static_cast<size_t>(channel)) = true;
    if (index < 0 || std::ssize(layer.order) != channels || std::find(seen.begin(), seen.end(), false) != seen.end())
      fuzz::Crash("an order that is none");
  }
  const std::string text = eval::ToJson(calibration);
  if (eval::ToJson(eval::ParseCalibration(text)) != text) fuzz::Crash("reads back as another calibration: " + text);
  return 0;
}

std::vector<std::string> fuzz::Seeds() {
  eval::Calibration two{.model = "a model", .fingerprint = "0123456789abcdef", .tokens = 128, .layers = {}};
  two.layers[0] = {{1, 4}, {2, 0, 3, 1}};
  two.layers[7] = {{2, 2}, {0, 1, 2, 3}};
  return {"{}", "[", "{\"format\":\"kvrazor-calibration\"}", eval::ToJson({}), eval::ToJson(two)};
}
