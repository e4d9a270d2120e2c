# Install rules and the CMake package. The calibration target is not exported but made by the
# package file: its definition holds a path that must follow the prefix when that is moved.

include(CMakePackageConfigHelpers)

set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/adaptive_k")
set(calibration_dir "${CMAKE_INSTALL_DATADIR}/adaptive_k/calibrations")

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/adaptive_k"
        DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.hpp" PATTERN "*.cuh" PATTERN "*.h")
install(DIRECTORY "${PROJECT_SOURCE_DIR}/calibrations/" DESTINATION "${calibration_dir}"
        FILES_MATCHING PATTERN "*.json" PATTERN "README.md")
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE"
        DESTINATION "${CMAKE_INSTALL_DATADIR}/adaptive_k")
install(TARGETS adaptive_k adaptive_k_host adaptive_k_c_host EXPORT adaptive_kTargets
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(EXPORT adaptive_kTargets NAMESPACE adaptive_k:: DESTINATION "${package_dir}")

configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/adaptive_kConfig.cmake.in"
  "${PROJECT_BINARY_DIR}/adaptive_kConfig.cmake"
  INSTALL_DESTINATION "${package_dir}"
  PATH_VARS calibration_dir)
# Before 1.0 a minor version may change the interface.
write_basic_package_version_file(
  "${PROJECT_BINARY_DIR}/adaptive_kConfigVersion.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/adaptive_kConfig.cmake"
              "${PROJECT_BINARY_DIR}/adaptive_kConfigVersion.cmake"
        DESTINATION "${package_dir}")
