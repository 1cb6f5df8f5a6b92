// One random attention problem in the three forms that a test needs: host pages for the float64 reference, device arrays for the
// kernel, and the expected result.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "src/backends/cuda/attend.h"
#include "tests/backends/cuda/device_buffer.h"
#include "tests/backends/cuda/random_pages.h"

namespace kvrazor::cuda {

struct CaseShape {
  std::string recipe = "razor-2";
  int head_dim = 128;
  int num_kv_heads = 2;
  int gqa_ratio = 4;
  std::vector<int> kv_len;
  int window = 128;           ///< tokens behind this many (in whole pages) from the end are sealed
  double row_page_share = 0;  ///< of the pages in front of the window that are row pages all the same
  bool wrong_hint = false;    ///< row_start says something else than the page table
  float key_size = 2;         ///< standard deviation of the keys' values
  int qo_len = 1;
  int sliding_window = 0;
  float softcap = 0;
  bool masked = false;  ///< random mask: some values, some tokens and some whole pages hidden
  bool learned_sinks = false;
  bool bf16 = false;
  int ring_stages = 0;
  int compute_major = kPackedComputeMajor;  ///< below: plain pages whatever the recipe
  uint32_t seed = 1;
};

struct Expected {
  std::vector<double> out;  ///< [batch][qo_len][num_qo_heads][head_dim]
  std::vector<double> lse;  ///< [batch][qo_len][num_qo_heads]
};

class AttendCase : RandomPages {
 public:
  explicit AttendCase(const CaseShape& shape);

  int batch_size() const { return static_cast<int>(shape_.kv_len.size()); }
  int num_qo_heads() const { return shape_.num_kv_heads * shape_.gqa_ratio; }
  AttendSpec spec() const;
  Expected Reference() const;

  /// Device copies; out and lse are filled with NaN.
  struct OnDevice {
    OnDevice(const AttendCase& c, const AttendPlan& plan);
    AttendArrays arrays() const;
    void Poison();
    DeviceBuffer<std::byte> packed_pages, row_pages, sink_rows, workspace;
    DeviceBuffer<int32_t> page_table, kv_len, row_start;
    DeviceBuffer<f16_bits> q, out, mask;
    DeviceBuffer<float> lse, sink_logits;
    int64_t mask_stride;
  };

  /// Other lengths and page order over the same pages (for replaying a graph).
  void Shuffle(const std::vector<int>& kv_len, uint32_t seed);

  const std::vector<int32_t>& page_table() const { return page_table_; }
  const std::vector<int32_t>& row_start() const { return row_start_; }
  const std::vector<int>& kv_len() const { return shape_.kv_len; }
  const std::vector<f16_bits>& q() const { return q_; }
  /// A value of q or of the output.
  double Value(f16_bits x) const;

 private:
  void MakeTables(uint32_t seed);
  void MakeMask();
  void AppendRow(int sequence, int new_token, int head, Expected& want) const;
  bool Sees(int sequence, int new_token, int token) const;
  int64_t mask_stride() const { return int64_t{max_pages_} * kPageTokens; }

  CaseShape shape_;
  int max_pages_ = 0;
  std::vector<int32_t> page_table_, row_start_;
  std::vector<f16_bits> q_, mask_;
  std::vector<float> sink_logits_;
};

}  // namespace kvrazor::cuda
