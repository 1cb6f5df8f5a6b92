# -DKVRAZOR_SANITIZE=address,undefined or thread: everything of ours is instrumented (presets asan and
# tsan); llama.cpp's libraries come from another build, as they are (llama.cmake, KVRAZOR_LLAMA_BUILT_IN).
include_guard(GLOBAL)

set(KVRAZOR_SANITIZE "" CACHE STRING "Sanitizers to build with: address,undefined or thread; empty for none")
if(KVRAZOR_SANITIZE)
  add_compile_options(-fsanitize=${KVRAZOR_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${KVRAZOR_SANITIZE})
endif()
