# One target a folder (style: "a tree that follows the data"). A folder links only what it may include; tools/check_layers
# checks the same rule on the #include lines.
include_guard(GLOBAL)

add_library(kvrazor_options INTERFACE)
target_compile_features(kvrazor_options INTERFACE cxx_std_20)
target_include_directories(kvrazor_options INTERFACE "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}>" "$<BUILD_INTERFACE:${PROJECT_SOURCE_DIR}/include>")
target_compile_options(kvrazor_options INTERFACE -Wall -Wextra -Wno-unused-parameter -Wno-psabi)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  target_compile_options(kvrazor_options INTERFACE -Wno-restrict)  # false alarms on std::string operator+ (GCC bug 105651)
endif()
if(KVRAZOR_WERROR)
  target_compile_options(kvrazor_options INTERFACE -Werror)
endif()

# kvrazor_library(NAME SOURCES ... [LINKS ...]): objects of one folder of the core library, gathered into the target kvrazor.
function(kvrazor_library name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  add_library(kvrazor_${name} OBJECT ${ARG_SOURCES})
  set_target_properties(kvrazor_${name} PROPERTIES POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  target_link_libraries(kvrazor_${name} PUBLIC kvrazor_options ${ARG_LINKS})
  set_property(GLOBAL APPEND PROPERTY KVRAZOR_OBJECT_LIBRARIES kvrazor_${name})
endfunction()

# Where tests run many times slower, under sanitizers and under emulation, they take fewer inputs.
set(KVRAZOR_SLOW_TESTS OFF)
if(KVRAZOR_SANITIZE OR CMAKE_CROSSCOMPILING)
  set(KVRAZOR_SLOW_TESTS ON)
endif()

# kvrazor_test(NAME SOURCES ... [LINKS ...] [TIMEOUT seconds] [LABELS ...]): a GoogleTest program, one ctest entry.
function(kvrazor_test name)
  cmake_parse_arguments(ARG "" "TIMEOUT" "SOURCES;LINKS;LABELS" ${ARGN})
  if(NOT KVRAZOR_TESTS)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvrazor kvrazor_options GTest::gmock GTest::gtest_main ${ARG_LINKS})
  add_test(NAME ${name} COMMAND ${name})
  if(NOT ARG_TIMEOUT)
    set(ARG_TIMEOUT 300)
  endif()
  if(CMAKE_CROSSCOMPILING)
    math(EXPR ARG_TIMEOUT "${ARG_TIMEOUT} * 10")
  endif()
  set_tests_properties(${name} PROPERTIES TIMEOUT ${ARG_TIMEOUT} LABELS "${ARG_LABELS}")
endfunction()

# kvrazor_bench(NAME SOURCES ... [LINKS ...]): a benchmark program; never a test.
function(kvrazor_bench name)
  cmake_parse_arguments(ARG "" "" "SOURCES;LINKS" ${ARGN})
  if(NOT KVRAZOR_BENCH)
    return()
  endif()
  add_executable(${name} ${ARG_SOURCES})
  target_link_libraries(${name} PRIVATE kvrazor kvrazor_options ${ARG_LINKS})
endfunction()
