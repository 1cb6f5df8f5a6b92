// What the plug-in has done since the last reset; read by kvrazor_ggml_get_stats from any thread.
#pragma once

#include <atomic>
#include <cstdint>

namespace kvrazor::ggml {

struct Counters {
  std::atomic<int64_t> graphs{0};  // graphs that touched a packed tensor or were passed through
  std::atomic<int64_t> ranges{0};  // node ranges given to the inner backend
  std::atomic<int64_t> set_rows{0};
  std::atomic<int64_t> attends{0};
  std::atomic<int64_t> generic_nodes{0};
  std::atomic<int64_t> sealed_pages{0};
  std::atomic<int64_t> thawed_pages{0};
  std::atomic<int64_t> state_reads{0};
  std::atomic<int64_t> state_writes{0};
  std::atomic<int64_t> state_carriers{0};  // sealed pages saved or restored as they are
  std::atomic<int64_t> state_errors{0};
  std::atomic<int64_t> refused_contexts{0};  // packing was required and is not possible

  void Reset() {
    for (std::atomic<int64_t>* c : {&graphs, &ranges, &set_rows, &attends, &generic_nodes, &sealed_pages, &thawed_pages,
                                    &state_reads, &state_writes, &state_carriers, &state_errors, &refused_contexts}) {
      *c = 0;
    }
  }
};

inline Counters& GlobalCounters() {
  static Counters counters;
  return counters;
}

inline void Count(std::atomic<int64_t>& counter, int64_t n = 1) { counter.fetch_add(n, std::memory_order_relaxed); }

}  // namespace kvrazor::ggml
