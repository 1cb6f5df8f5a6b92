# Writes build_info.h with the commit of the source tree, only when it has changed. Run at each build:
#   cmake -DSOURCE_DIR=... -DOUTPUT=... -DVERSION=... -P build_info.cmake
find_package(Git QUIET)
set(commit "unknown")
if(Git_FOUND)
  execute_process(COMMAND "${GIT_EXECUTABLE}" -C "${SOURCE_DIR}" describe --always --dirty --abbrev=12 --match=NoTagMatchesThis
                  OUTPUT_VARIABLE described ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE failed)
  if(NOT failed)
    set(commit "${described}")
  endif()
endif()
set(text "#pragma once\ninline constexpr char kBuildCommit[] = \"${commit}\";\ninline constexpr char kBuildVersion[] = \"${VERSION}\";\n")
if(EXISTS "${OUTPUT}")
  file(READ "${OUTPUT}" present)
endif()
if(NOT "${present}" STREQUAL "${text}")
  file(WRITE "${OUTPUT}" "${text}")
endif()
