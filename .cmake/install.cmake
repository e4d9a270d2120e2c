# Install rules and the CMake package. Each optional part is an export set of its own, which the
# package file reads where the part's needs are there. The definition with the calibrations' folder
# is made by that file: its path must follow the prefix when that is moved.

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
install(TARGETS adaptive_k adaptive_k_host adaptive_k_c_host adaptive_k_shared
        EXPORT adaptive_kTargets
        ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}"
        RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
install(EXPORT adaptive_kTargets NAMESPACE adaptive_k:: DESTINATION "${package_dir}")
foreach(part IN LISTS ADAPTIVE_K_OPTIONAL_PARTS)
  if(TARGET adaptive_k_${part})
    install(TARGETS adaptive_k_${part} EXPORT adaptive_k_${part})
    install(EXPORT adaptive_k_${part} NAMESPACE adaptive_k:: DESTINATION "${package_dir}"
            FILE adaptive_k_${part}.cmake)
  endif()
endforeach()

set(adaptive_k_kernel_architectures "")
if(TARGET adaptive_k_kernel_objects)
  get_target_property(adaptive_k_kernel_architectures adaptive_k_kernel_objects CUDA_ARCHITECTURES)
endif()
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
              "${CMAKE_CURRENT_LIST_DIR}/parts.cmake"
              "${CMAKE_CURRENT_LIST_DIR}/architectures.cmake"
              "${PROJECT_BINARY_DIR}/adaptive_kConfigVersion.cmake"
        DESTINATION "${package_dir}")

# What builds without CMake ask pkg-config for: the headers, and each library by its target's name.
# Every path follows the file, so that the prefix may be moved.
file(RELATIVE_PATH up "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig" "${CMAKE_INSTALL_PREFIX}")
string(REGEX REPLACE "/$" "" up "${up}")
set(pc_includedir "\${prefix}")
set(pc_libdir "\${prefix}")
set(pc_calibration_dir "\${prefix}")
cmake_path(APPEND pc_includedir "${CMAKE_INSTALL_INCLUDEDIR}")  # which stays as it is if absolute
cmake_path(APPEND pc_libdir "${CMAKE_INSTALL_LIBDIR}")
cmake_path(APPEND pc_calibration_dir "${calibration_dir}")
function(_adaptive_k_install_pc name what requires cflags libs)
  configure_file("${PROJECT_SOURCE_DIR}/.cmake/pkg_config.pc.in" "${PROJECT_BINARY_DIR}/${name}.pc" @ONLY)
  install(FILES "${PROJECT_BINARY_DIR}/${name}.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
endfunction()
list(TRANSFORM ADAPTIVE_K_CXX_LIBRARIES PREPEND -l OUTPUT_VARIABLE cxx_libraries)
list(JOIN cxx_libraries " " cxx_libraries)
set(find "-L\${libdir}")
set(with_host -DADAPTIVE_K_HOST_LIBRARY)
_adaptive_k_install_pc(adaptive_k "the headers" "" "-I\${includedir}" "")
_adaptive_k_install_pc(adaptive_k-host "the host path, compiled for every instruction set"
  adaptive_k "${with_host}" "${find} -ladaptive_k_host")
_adaptive_k_install_pc(adaptive_k-c_host "the C interface, a static library"
  adaptive_k "${with_host}" "${find} -ladaptive_k_c_host -ladaptive_k_host ${cxx_libraries}")
_adaptive_k_install_pc(adaptive_k-shared "the C interface, a shared library"
  adaptive_k "" "${find} -ladaptive_k")
