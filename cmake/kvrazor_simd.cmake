# Which of Highway's targets are compiled beside the machine's best: the program picks one when it runs.
include_guard(GLOBAL)

if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(aarch64|arm64|ARM64)$")
  # The kernels keep vectors in arrays, whose size SVE does not know when compiling. NEON runs on the same machines.
  set(KVRAZOR_DISABLED_TARGETS "(HWY_SVE|HWY_SVE2|HWY_SVE_256|HWY_SVE2_128)")
elseif(KVRAZOR_SANITIZE)
  # One target is enough to look for misuse of memory, and compiles in a fraction of the time.
  set(KVRAZOR_DISABLED_TARGETS "(HWY_AVX3_DL|HWY_AVX3|HWY_SSE4|HWY_SSSE3)")
endif()
if(KVRAZOR_DISABLED_TARGETS)
  add_compile_definitions("$<$<COMPILE_LANGUAGE:CXX>:HWY_DISABLED_TARGETS=${KVRAZOR_DISABLED_TARGETS}>")
endif()
