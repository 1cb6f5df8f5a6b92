// Long random sequences of operations on a cache, each compared with the model.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/cache/cache_model.h"

namespace kvrazor::test {

struct DriverOptions {
  CacheOptions cache;
  int64_t num_operations = 0;  // calls that change the cache (failed ones included)
  uint64_t seed = 1;
  int max_open = 7;           // sequences
  int64_t max_len = 900;      // tokens of one
  bool count_queries = true;  // the toy backend: the model counts query rows itself
  int attend_every = 200;     // one Append in so many is followed by an Attend that is compared; 0: none
  int full_check_every = 1024;
};

struct DriverCounts {
  int64_t operations = 0, out_of_pages = 0, refused = 0;
  CacheStats stats;  // at the end
};

/// Runs the operations. Throws std::runtime_error with the number of the first operation after which the two differ.
DriverCounts RunDriver(const DriverOptions& options);

}  // namespace kvrazor::test
