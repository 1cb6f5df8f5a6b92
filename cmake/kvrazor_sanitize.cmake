# -DKVRAZOR_SANITIZE=address,undefined or thread: everything in this build is instrumented (presets asan and tsan).
include_guard(GLOBAL)

set(KVRAZOR_SANITIZE "" CACHE STRING "Sanitizers to build with: address,undefined or thread; empty for none")
if(KVRAZOR_SANITIZE)
  add_compile_options(-fsanitize=${KVRAZOR_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${KVRAZOR_SANITIZE})
endif()
