# The Debian package: `cpack` in the build folder. One package of everything that is installed, at this
# build's own prefix, as the C interface looks for presets there: configure with
# -DCMAKE_INSTALL_PREFIX=/usr for one that belongs to the system.

set(deb_name libadaptive-k-dev)
set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME ${deb_name})
set(CPACK_PACKAGE_VENDOR "adaptive-k")
# Who gives the package to others names themselves: cpack -D CPACK_PACKAGE_CONTACT="...".
set(CPACK_PACKAGE_CONTACT "adaptive-k maintainers <maintainers@adaptive-k.invalid>")
set(CPACK_PACKAGING_INSTALL_PREFIX "${CMAKE_INSTALL_PREFIX}")
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGE_DESCRIPTION
"A header-only C++17 library for Mixture-of-Experts inference that decides, per
token and per layer, how many experts run and which, sets their weights right,
and counts what was saved.
.
The package holds the headers, the host path compiled for AVX-512, AVX2 and
NEON, the C interface as a static and as a shared library, calibrated presets,
and the files by which CMake and pkg-config find them.
.
Licence: Apache-2.0.")
# What the optional parts need: presets; A/B tests and the endpoint for Prometheus; the calibrator; kernels.
set(CPACK_DEBIAN_PACKAGE_RECOMMENDS "nlohmann-json3-dev (>= 3.9)")
set(CPACK_DEBIAN_PACKAGE_SUGGESTS
    "libboost-dev (>= 1.70), libeigen3-dev (>= 3.3), nvidia-cuda-toolkit, cmake, pkg-config")
find_program(ADAPTIVE_K_SHLIBDEPS dpkg-shlibdeps)
mark_as_advanced(ADAPTIVE_K_SHLIBDEPS)
if(ADAPTIVE_K_SHLIBDEPS)  # what the shared library was linked with
  set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
else()
  set(CPACK_DEBIAN_PACKAGE_DEPENDS "libc6, libgcc-s1, libstdc++6")
endif()
set(CPACK_DEBIAN_PACKAGE_GENERATE_SHLIBS ON)
file(WRITE "${PROJECT_BINARY_DIR}/deb/control/triggers" "activate-noawait ldconfig\n")
set(CPACK_DEBIAN_PACKAGE_CONTROL_EXTRA "${PROJECT_BINARY_DIR}/deb/control/triggers")

# Debian's place for the licence is by the package's name.
configure_file("${PROJECT_SOURCE_DIR}/LICENSE" "${PROJECT_BINARY_DIR}/deb/doc/copyright" COPYONLY)
set(CPACK_INSTALLED_DIRECTORIES
    "${PROJECT_BINARY_DIR}/deb/doc;${CMAKE_INSTALL_FULL_DATAROOTDIR}/doc/${deb_name}")
include(CPack)
