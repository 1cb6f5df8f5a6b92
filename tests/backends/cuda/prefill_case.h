// One random chunk of new tokens over a paged cache, in the three forms that a test needs: host pages for the float64 reference, device
// arrays for the kernels, and the expected result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/backends/cuda/prefill.h"
#include "tests/backends/cuda/device_buffer.h"
#include "tests/backends/cuda/random_pages.h"

namespace kvrazor::cuda {

struct PrefillShape {
  std::string recipe = "razor-2";
  int head_dim = 128;
  int num_kv_heads = 1;
  int gqa_ratio = 2;
  struct Sequence {
    int kv_len, new_len;
  };
  std::vector<Sequence> sequences;
  int window = 128;                ///< tokens behind this many (in whole pages) from the end of kv_len are sealed
  double row_page_share = 0;       ///< of the pages in front of the window that are row pages all the same
  bool packed_to_the_end = false;  ///< every page is packed, the last one too: kv_len may end inside it
  bool new_rows_in_pages = false;
  float key_size = 2;  ///< standard deviation of the keys' values
  bool causal = true;
  int sliding_window = 0;
  float softcap = 0;
  bool masked = false;  ///< random mask: some values, tokens, whole pages and whole rows hidden
  bool learned_sinks = false;
  bool bf16 = false;
  int padding = 0;  ///< values between the rows of q, k, v and out; a multiple of 8
  int64_t workspace_tokens = 0;
  uint32_t seed = 1;
};

struct PrefillExpected {
  std::vector<double> out;  ///< [new tokens][num_qo_heads][head_dim]
  std::vector<double> lse;  ///< [new tokens][num_qo_heads]
  /// [new tokens][num_qo_heads] largest L2 error of a row of out that rounding to f16 explains.
  std::vector<double> rounding;
};

class PrefillCase : RandomPages {
 public:
  static constexpr int kGuardRows = 3;  // of out and lse behind the last new token

  explicit PrefillCase(const PrefillShape& shape);

  int batch_size() const { return static_cast<int>(shape_.sequences.size()); }
  int num_qo_heads() const { return shape_.num_kv_heads * shape_.gqa_ratio; }
  int num_new() const { return new_begin_.back(); }
  int64_t qo_stride() const { return int64_t{num_qo_heads()} * shape_.head_dim + shape_.padding; }
  PrefillSpec spec() const;
  PrefillExpected Reference() const;

  struct OnDevice {
    OnDevice(const PrefillCase& c, const PrefillPlan& plan);
    PrefillArrays arrays() const;
    /// out, lse and the workspace full of NaN.
    void Poison();
    DeviceBuffer<std::byte> packed_pages, row_pages, sink_rows, workspace;
    DeviceBuffer<int32_t> page_table, kv_len, new_begin;
    DeviceBuffer<f16_bits> q, k, v, out, mask;
    DeviceBuffer<float> lse, sink_logits;
    PrefillArrays shape;  // strides and batch size
    bool new_rows_in_pages;
  };

  /// Other lengths and page order over the same pages, queries and new rows (for replaying a graph); as many sequences.
  void Shuffle(const std::vector<PrefillShape::Sequence>& sequences, uint32_t seed);

  const std::vector<int32_t>& page_table() const { return page_table_; }
  std::vector<int32_t> kv_len() const;
  const std::vector<int32_t>& new_begin() const { return new_begin_; }
  /// A value of q, k, v or the output.
  double Value(f16_bits x) const;

 private:
  void MakeTables(uint32_t seed);
  void MakeMask();
  std::vector<f16_bits> ModelRows(int num_tokens, int num_heads, float size, float offset);
  /// Keys transposed [head_dim][total] and values [total][head_dim] of a sequence and head.
  Values SequenceRows(int sequence, int head) const;
  void AppendRow(int sequence, int new_token, int head, const Values& rows, PrefillExpected& want) const;
  int Total(int sequence) const;
  int64_t kv_stride() const { return int64_t{shape_.num_kv_heads} * shape_.head_dim + shape_.padding; }

  PrefillShape shape_;
  int max_pages_ = 0;
  int64_t mask_stride_ = 0;
  std::vector<int32_t> page_table_, new_begin_;
  std::vector<f16_bits> q_, k_, v_, mask_;
  std::vector<float> sink_logits_;
};

}  // namespace kvrazor::cuda
