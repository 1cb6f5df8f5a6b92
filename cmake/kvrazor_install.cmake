# cmake --install: two components.
#   library   the core library and its headers, found by find_package(kvrazor) and by pkg-config; nothing of llama.cpp
#   program   bin/kvrazor, and in lib/kvrazor the plug-in with the llama.cpp libraries that both were built with
include_guard(GLOBAL)
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

install(TARGETS kvrazor EXPORT kvrazorTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT library)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/kvrazor" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" COMPONENT library
        FILES_MATCHING PATTERN "*.h" PATTERN "ggml.h" EXCLUDE PATTERN "recipe_json.h" EXCLUDE)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}" COMPONENT library)

set(kvrazor_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/kvrazor")
install(EXPORT kvrazorTargets NAMESPACE kvrazor:: DESTINATION "${kvrazor_cmake_dir}" COMPONENT library)
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/kvrazorConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/kvrazorConfig.cmake" INSTALL_DESTINATION "${kvrazor_cmake_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/kvrazorConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/kvrazorConfig.cmake" "${PROJECT_BINARY_DIR}/kvrazorConfigVersion.cmake"
        DESTINATION "${kvrazor_cmake_dir}" COMPONENT library)

# pkg-config: paths relative to the .pc file, so that an installed tree can be moved.
file(RELATIVE_PATH kvrazor_pc_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file("${PROJECT_SOURCE_DIR}/cmake/kvrazor.pc.in" "${PROJECT_BINARY_DIR}/kvrazor.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/kvrazor.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig" COMPONENT library)

if(NOT TARGET kvrazor_cli)
  return()
endif()
# The program and the libraries find each other by relative paths, so that this tree can be moved too.
set(kvrazor_private_libdir "${CMAKE_INSTALL_LIBDIR}/kvrazor")
file(RELATIVE_PATH kvrazor_bin_to_lib "/${CMAKE_INSTALL_BINDIR}" "/${kvrazor_private_libdir}")
set(kvrazor_shared_libraries ggml-kvrazor ggml-kvrazor-preload llama llama-common llama-server-impl mtmd ggml ggml-base ggml-cpu)
# Without headers: those of llama.cpp's targets are named relative to its own folders, and nobody is to build against these libraries.
set_target_properties(${kvrazor_shared_libraries} PROPERTIES INSTALL_RPATH "\$ORIGIN" PUBLIC_HEADER "" PRIVATE_HEADER "")
set_target_properties(kvrazor_cli PROPERTIES INSTALL_RPATH "\$ORIGIN/${kvrazor_bin_to_lib}")
install(TARGETS kvrazor_cli RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT program)
install(TARGETS ${kvrazor_shared_libraries} LIBRARY DESTINATION "${kvrazor_private_libdir}" COMPONENT program NAMELINK_SKIP)
install(DIRECTORY "${PROJECT_SOURCE_DIR}/build/_deps/server_page" DESTINATION "${CMAKE_INSTALL_DATADIR}/kvrazor" COMPONENT program OPTIONAL
        PATTERN ".sdist" EXCLUDE)
