// Shadow mode: what a recipe costs in accuracy, measured on llama.cpp's own 16-bit cache. Keys and values stay where llama.cpp
// keeps them; whenever the plug-in would seal a page, its rows are sealed and dequantized by the same operations and written back.
// Nothing gets smaller, but any architecture with keys and values can be measured, heads of any size up to 256 included:
//
//   graph callback   SET_ROWS on cache_k_l<n>, cache_v_l<n>   which slots hold tokens, which are sinks
//                    attention                                heads; queries for the second moment
//   EndBatch         pages that are due: rows -> Seal -> Dequantize -> f16 rows -> the same slots
//
// A head size that no page has (80, 96) is filled up with zeros to the next one; the bits count against the model's own values.
#pragma once

#include <cstdint>
#include <exception>
#include <map>
#include <memory>
#include <vector>

#include "eval/calibration.h"
#include "eval/model.h"
#include "eval/rope.h"
#include "eval/rotate_kv.h"
#include "eval/shadow_pages.h"
#include "ggml-backend.h"
#include "kvrazor/executor.h"
#include "kvrazor/layout.h"
#include "kvrazor/recipe.h"
#include "src/ops/exact_tokens.h"
#include "src/ops/second_moment.h"

namespace kvrazor::eval {

/// Give OnNode and the object to MakeContext (llama.cpp's f16 cache, one sequence, flash attention); it must outlive the context
/// and serves one.
class ShadowCache {
 public:
  /// The recipe of a model of num_layers layers. calibration: of the model, for recipes that need one; must outlive the object.
  /// Throws Error if it is needed and nullptr.
  ShadowCache(const Recipe& recipe, int num_layers, int threads, const Calibration* calibration = nullptr);

  static bool OnNode(ggml_tensor* node, bool ask, void* shadow);

  /// After every llama_decode. Throws Error if the model's cache cannot be treated this way, with the reason: no keys and values
  /// (recurrent), both in one tensor (MLA), another type than f16.
  void EndBatch();

  /// What packed pages of the same contents would take: sealed pages, 16-bit rows, sinks, second moments; no tables. Also when
  /// the context is gone.
  KvUsage Usage() const;

 private:
  struct Tensor {
    ggml_tensor* root = nullptr;  // [row_values, slots] f16, the context's
    int64_t row_values = 0;
    PageLayout layout;  // of a sealed page; heads filled up
    int head_dim = 0;   // the model's
    bool seals() const { return layout.page_bytes > 0; }
    int64_t row_bytes() const { return row_values * 2; }
  };
  struct BeforeRope {
    std::vector<int32_t> order;  // of the channels
    Rope rope;
    std::vector<int32_t> positions;  // [rope.positions_per_token()][slots]
    MassiveEntries massive;          // of the layer's input
  };
  struct Layer {
    Recipe recipe;
    Tensor keys, values;
    std::unique_ptr<ShadowPages> pages;
    ExactRule rule;  // of outlier tokens
    ExactTrace trace;
    std::unique_ptr<SecondMoment> moment;     // razor keys only
    int64_t decode_steps = 0;                 // attention nodes with few tokens, for sampling queries
    std::unique_ptr<BeforeRope> before_rope;  // keys quantized before RoPE only
  };
  struct Job;

  bool Wants(const ggml_tensor* node) const;
  void See(ggml_tensor* node);
  void SeeRows(const ggml_tensor* set_rows, int layer, Side side);
  void SeeAttention(const ggml_tensor* node, ggml_tensor* keys, int layer);
  void SeeBeforeRope(Layer& layer, int index, const ggml_tensor* set_rows, const std::vector<int64_t>& slots);
  void SetHeads(Layer& layer, int index, const ggml_tensor* attention, const ggml_tensor* keys);
  void AddQueries(Layer& layer, const ggml_tensor* attention);
  Layer& LayerOf(int index);
  void ChooseExact(Layer& layer, int64_t page);
  void SealDue();

  Recipe recipe_;
  const Calibration* calibration_;
  std::unique_ptr<Executor> executor_;
  std::map<int, Layer> layers_;
  std::vector<int32_t> positions_;  // of the batch's tokens, as RoPE has them; empty: none was seen yet
  const ggml_tensor* positions_from_ = nullptr;
  std::exception_ptr failure_;  // of a callback: ggml's code is not made for exceptions
};

}  // namespace kvrazor::eval
