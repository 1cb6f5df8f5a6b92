# llama.cpp as a part of this build: only the targets that our programs link are ever compiled (EXCLUDE_FROM_ALL).
# KVRAZOR_LLAMA_SOURCE_DIR takes any llama.cpp checkout; by default it is the one tools/bootstrap unpacks.
# llama.cpp's configuration messages are not shown (it warns about a missing git repository); --log-level=STATUS shows them.
include_guard(GLOBAL)

set(KVRAZOR_LLAMA_SOURCE_DIR "${PROJECT_SOURCE_DIR}/build/_deps/llama.cpp" CACHE PATH "llama.cpp source tree")
set(KVRAZOR_GGML_VERSION_TESTED 0.25.3)

if(NOT EXISTS "${KVRAZOR_LLAMA_SOURCE_DIR}/include/llama.h")
  message(FATAL_ERROR
    "kvrazor: no llama.cpp in '${KVRAZOR_LLAMA_SOURCE_DIR}'.\n"
    "Run tools/bootstrap (it fetches the pinned sources), give -DKVRAZOR_LLAMA_SOURCE_DIR=<checkout>, "
    "or build the core library alone with -DKVRAZOR_LLAMA=OFF.")
endif()

file(READ "${KVRAZOR_LLAMA_SOURCE_DIR}/ggml/CMakeLists.txt" ggml_cmake)
set(ggml_version "")
foreach(part MAJOR MINOR PATCH)
  if(ggml_cmake MATCHES "set\\(GGML_VERSION_${part} ([0-9]+)\\)")
    list(APPEND ggml_version "${CMAKE_MATCH_1}")
  endif()
endforeach()
list(JOIN ggml_version "." ggml_version)
if(ggml_version VERSION_EQUAL KVRAZOR_GGML_VERSION_TESTED)
  message(STATUS "llama.cpp: ${KVRAZOR_LLAMA_SOURCE_DIR} (ggml ${ggml_version})")
else()
  message(WARNING
    "kvrazor: '${KVRAZOR_LLAMA_SOURCE_DIR}' holds ggml '${ggml_version}'; tested is ${KVRAZOR_GGML_VERSION_TESTED} "
    "(tools/bootstrap). The plug-in checks the host at start and leaves it untouched where it does not fit.")
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

# Some virtual machines announce AMX and do not keep its registers: ggml's AMX kernels then end with SIGILL or SIGSEGV.
option(KVRAZOR_LLAMA_AMX "Let llama.cpp use AMX tiles" OFF)
include(CheckCCompilerFlag)
check_c_compiler_flag(-mno-amx-tile KVRAZOR_HAS_NO_AMX)

# Unpacked sources have no history of their own: keep git from reporting this repository's commit as llama.cpp's, which
# would also recompile a part of it after every commit here.
function(kvrazor_add_llama)
  if(NOT EXISTS "${KVRAZOR_LLAMA_SOURCE_DIR}/.git")
    set(LLAMA_BUILD_NUMBER 0)
    set(LLAMA_BUILD_COMMIT "ggml-${ggml_version}")
    set(GIT_EXECUTABLE "${CMAKE_COMMAND}" "-E" "false")
  endif()
  if(KVRAZOR_HAS_NO_AMX AND NOT KVRAZOR_LLAMA_AMX)
    foreach(language C CXX)
      string(APPEND CMAKE_${language}_FLAGS " -mno-amx-tile -mno-amx-int8 -mno-amx-bf16")
    endforeach()
  endif()
  set(CMAKE_MESSAGE_LOG_LEVEL ERROR)
  add_subdirectory("${KVRAZOR_LLAMA_SOURCE_DIR}" "${CMAKE_BINARY_DIR}/llama.cpp" EXCLUDE_FROM_ALL)
endfunction()
# Links the shared libraries that another build folder made; sanitizers stay out of them, and nothing of llama.cpp is compiled
# twice. Targets and headers are what our own code uses of them.
function(kvrazor_import_llama folder)
  include("${folder}/llama-built.cmake" OPTIONAL RESULT_VARIABLE found)
  if(NOT found)
    message(FATAL_ERROR
      "kvrazor: no llama.cpp was built in '${folder}' (KVRAZOR_LLAMA_BUILT_IN).\n"
      "Build it first: cmake --preset release && cmake --build --preset release --target llama llama-common")
  endif()
  if(NOT llama_built_from STREQUAL KVRAZOR_LLAMA_SOURCE_DIR)
    message(FATAL_ERROR "kvrazor: '${folder}' was built from '${llama_built_from}', this build reads '${KVRAZOR_LLAMA_SOURCE_DIR}'")
  endif()
  foreach(target ggml-base ggml-cpu ggml llama llama-common)
    add_library(${target} SHARED IMPORTED GLOBAL)
    set_target_properties(${target} PROPERTIES IMPORTED_LOCATION "${folder}/bin/lib${target}.so")
  endforeach()
  target_include_directories(ggml-base INTERFACE "${KVRAZOR_LLAMA_SOURCE_DIR}/ggml/include")
  target_link_libraries(ggml INTERFACE ggml-base ggml-cpu)
  target_include_directories(llama INTERFACE "${KVRAZOR_LLAMA_SOURCE_DIR}/include")
  target_link_libraries(llama INTERFACE ggml)
  target_include_directories(llama-common INTERFACE "${KVRAZOR_LLAMA_SOURCE_DIR}/common" "${KVRAZOR_LLAMA_SOURCE_DIR}/vendor")
  target_link_libraries(llama-common INTERFACE llama)
  foreach(name KVRAZOR_GGML_VERSION KVRAZOR_GGML_COMMIT)
    set(${name} "${${name}}" PARENT_SCOPE)
  endforeach()
endfunction()

set(KVRAZOR_LLAMA_BUILT_IN "" CACHE PATH "Build folder of kvrazor whose llama.cpp libraries are linked; empty: this build makes its own")
if(KVRAZOR_LLAMA_BUILT_IN)
  kvrazor_import_llama("${KVRAZOR_LLAMA_BUILT_IN}")
else()
  get_filename_component(llama_parent "${KVRAZOR_LLAMA_SOURCE_DIR}" DIRECTORY)
  set(ceiling "$ENV{GIT_CEILING_DIRECTORIES}")
  set(ENV{GIT_CEILING_DIRECTORIES} "${llama_parent}")
  kvrazor_add_llama()
  set(ENV{GIT_CEILING_DIRECTORIES} "${ceiling}")
  # The version that the plug-in reads private structures of; it is checked at run time (version_guard.h).
  get_directory_property(KVRAZOR_GGML_VERSION DIRECTORY "${KVRAZOR_LLAMA_SOURCE_DIR}/ggml" DEFINITION GGML_VERSION)
  get_directory_property(KVRAZOR_GGML_COMMIT DIRECTORY "${KVRAZOR_LLAMA_SOURCE_DIR}/ggml" DEFINITION GGML_BUILD_COMMIT)
  file(CONFIGURE OUTPUT "${CMAKE_BINARY_DIR}/llama-built.cmake" @ONLY CONTENT
"set(llama_built_from \"@KVRAZOR_LLAMA_SOURCE_DIR@\")
set(KVRAZOR_GGML_VERSION \"@KVRAZOR_GGML_VERSION@\")
set(KVRAZOR_GGML_COMMIT \"@KVRAZOR_GGML_COMMIT@\")
")
endif()
if(NOT KVRAZOR_GGML_VERSION)
  message(FATAL_ERROR "kvrazor: no GGML_VERSION in ${KVRAZOR_LLAMA_SOURCE_DIR}/ggml/CMakeLists.txt; is it a llama.cpp source tree?")
endif()
