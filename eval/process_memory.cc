#include "eval/process_memory.h"

#include <fstream>
#include <string>

#include "kvrazor/error.h"

namespace kvrazor::eval {

int64_t PeakResidentBytes() {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);) {
    if (line.starts_with("VmHWM:")) return std::stoll(line.substr(6)) * 1024;  // the kernel writes kB and means 1024
  }
  throw Error("peak memory: /proc/self/status has no line VmHWM. Linux with /proc mounted is needed.");
}

}  // namespace kvrazor::eval
