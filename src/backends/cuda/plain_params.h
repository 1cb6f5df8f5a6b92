// What the kernels over plain pages read and write besides what those over packed pages do.
#pragma once

#include "src/backends/cuda/attend_params.h"
#include "src/backends/cuda/plain_page.h"

namespace kvrazor::cuda {

struct PlainAttendParams {
  AttendParams a;  // partial_out [batch][tiles][splits][kBlockRows][D], partial_lse likewise [2]; no stages
  PlainPage page;
  uint32_t* arrivals;  // [batch][tiles], 0 between launches
};

}  // namespace kvrazor::cuda
