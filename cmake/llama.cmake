# llama.cpp as a part of this build: only the targets that our programs link are ever compiled (EXCLUDE_FROM_ALL).
# KVRAZOR_LLAMA_SOURCE_DIR takes any llama.cpp checkout; by default it is the one tools/bootstrap unpacks.
set(KVRAZOR_LLAMA_SOURCE_DIR "${CMAKE_SOURCE_DIR}/build/_deps/llama.cpp" CACHE PATH "llama.cpp source tree")

if(NOT EXISTS "${KVRAZOR_LLAMA_SOURCE_DIR}/include/llama.h")
  message(FATAL_ERROR
    "kvrazor: no llama.cpp in '${KVRAZOR_LLAMA_SOURCE_DIR}'.\n"
    "Run tools/bootstrap (it fetches the pinned sources), give -DKVRAZOR_LLAMA_SOURCE_DIR=<checkout>, "
    "or build the core library alone with -DKVRAZOR_LLAMA=OFF.")
endif()

set(LLAMA_BUILD_COMMON ON CACHE INTERNAL "")
set(LLAMA_BUILD_TOOLS ON CACHE INTERNAL "")
set(LLAMA_BUILD_SERVER ON CACHE INTERNAL "")
set(LLAMA_BUILD_TESTS OFF CACHE INTERNAL "")
set(LLAMA_BUILD_EXAMPLES OFF CACHE INTERNAL "")
set(LLAMA_BUILD_APP OFF CACHE INTERNAL "")
set(LLAMA_USE_PREBUILT_UI OFF CACHE INTERNAL "")  # would download at build time
set(LLAMA_OPENSSL OFF CACHE INTERNAL "")          # models are local files
set(BUILD_SHARED_LIBS ON CACHE INTERNAL "")       # a plug-in reaches ggml's registry only through shared libraries
set(GGML_CCACHE OFF CACHE INTERNAL "")            # the compiler launcher is set at the top level

add_subdirectory("${KVRAZOR_LLAMA_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/llama.cpp" EXCLUDE_FROM_ALL)
