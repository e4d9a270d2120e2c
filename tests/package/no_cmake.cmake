# The package as builds without CMake meet it, by pkg-config; and the Debian package that carries both.

enable_language(C)
find_program(ADAPTIVE_K_PKG_CONFIG pkg-config)
find_program(ADAPTIVE_K_DPKG_DEB dpkg-deb)
mark_as_advanced(ADAPTIVE_K_PKG_CONFIG ADAPTIVE_K_DPKG_DEB)
if(NOT ADAPTIVE_K_PKG_CONFIG)
  message(STATUS "adaptive_k: pkg-config is not installed, so nothing tests the files for it")
endif()

# adaptive_k_add_pkg_config_test(name prefix fixture)
function(adaptive_k_add_pkg_config_test NAME PREFIX FIXTURE)
  if(ADAPTIVE_K_PKG_CONFIG AND UNIX AND NOT ADAPTIVE_K_SANITIZE)
    add_test(NAME package.${NAME} COMMAND "${CMAKE_COMMAND}"
      "-DPKG_CONFIG=${ADAPTIVE_K_PKG_CONFIG}" "-DPREFIX=${PREFIX}" "-DVERSION=${PROJECT_VERSION}"
      "-DCXX=${CMAKE_CXX_COMPILER}" "-DCC=${CMAKE_C_COMPILER}" "-DPROGRAMS=${CMAKE_CURRENT_SOURCE_DIR}"
      "-DFAST=${fast}" "-DWORK=${CMAKE_CURRENT_BINARY_DIR}/${NAME}"
      -P "${CMAKE_CURRENT_SOURCE_DIR}/pkg_config.cmake")
    set_tests_properties(package.${NAME} PROPERTIES LABELS "toolchain;package" TIMEOUT 300
                         FIXTURES_REQUIRED ${FIXTURE})
  endif()
endfunction()
adaptive_k_add_pkg_config_test(pkg_config "${ADAPTIVE_K_TEST_PREFIX}" adaptive_k_package)

if(NOT ADAPTIVE_K_DPKG_DEB)
  message(STATUS "adaptive_k: dpkg-deb is not installed, so nothing tests the Debian package")
elseif(NOT ADAPTIVE_K_SANITIZE AND CMAKE_CPACK_COMMAND)
  set(root "${CMAKE_CURRENT_BINARY_DIR}/deb")
  add_test(NAME package.deb COMMAND "${CMAKE_COMMAND}" "-DBUILD=${PROJECT_BINARY_DIR}" "-DROOT=${root}"
    "-DVERSION=${PROJECT_VERSION}" "-DPREFIX=${CMAKE_INSTALL_PREFIX}" "-DCPACK=${CMAKE_CPACK_COMMAND}"
    "-DDPKG_DEB=${ADAPTIVE_K_DPKG_DEB}" -P "${CMAKE_CURRENT_SOURCE_DIR}/deb.cmake")
  set_tests_properties(package.deb PROPERTIES LABELS "toolchain;package" TIMEOUT 300
                       FIXTURES_SETUP adaptive_k_deb)
  adaptive_k_add_pkg_config_test(deb_pkg_config "${root}${CMAKE_INSTALL_PREFIX}" adaptive_k_deb)
  adaptive_k_add_package_test(deb_find_package PREFIX "${root}${CMAKE_INSTALL_PREFIX}" CONSUMER core_only
    PRINTS "${saves}" OPTIONS -DCMAKE_DISABLE_FIND_PACKAGE_nlohmann_json=ON)
  set_tests_properties(package.deb_find_package PROPERTIES FIXTURES_REQUIRED adaptive_k_deb)
endif()
