# cmake --install: the core library and its headers, found by find_package(kvrazor) and by pkg-config. Nothing of llama.cpp
# is installed with it; the plug-in and the program run from the build folder.
include_guard(GLOBAL)
include(CMakePackageConfigHelpers)
include(GNUInstallDirs)

install(TARGETS kvrazor EXPORT kvrazorTargets ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/kvrazor" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.h" PATTERN "ggml.h" EXCLUDE PATTERN "recipe_json.h" EXCLUDE)
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")

set(kvrazor_cmake_dir "${CMAKE_INSTALL_LIBDIR}/cmake/kvrazor")
install(EXPORT kvrazorTargets NAMESPACE kvrazor:: DESTINATION "${kvrazor_cmake_dir}")
configure_package_config_file("${PROJECT_SOURCE_DIR}/cmake/kvrazorConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/kvrazorConfig.cmake" INSTALL_DESTINATION "${kvrazor_cmake_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/kvrazorConfigVersion.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/kvrazorConfig.cmake" "${PROJECT_BINARY_DIR}/kvrazorConfigVersion.cmake"
        DESTINATION "${kvrazor_cmake_dir}")

# pkg-config: paths relative to the .pc file, so that an installed tree can be moved.
file(RELATIVE_PATH kvrazor_pc_to_prefix "/${CMAKE_INSTALL_LIBDIR}/pkgconfig" "/")
configure_file("${PROJECT_SOURCE_DIR}/cmake/kvrazor.pc.in" "${PROJECT_BINARY_DIR}/kvrazor.pc" @ONLY)
install(FILES "${PROJECT_BINARY_DIR}/kvrazor.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
