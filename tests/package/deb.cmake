# Makes the Debian package of BUILD, checks what it says of itself, and unpacks it into ROOT, which takes
# no right of root's.
#   cmake -DBUILD=... -DROOT=... -DVERSION=... -DPREFIX=<of the build> -DCPACK=... -DDPKG_DEB=... -P deb.cmake

cmake_minimum_required(VERSION 3.22)
file(REMOVE_RECURSE "${ROOT}" "${ROOT}.made")

macro(run_step WHAT)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors
                  OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${WHAT} failed (${result}):\n${output}\n${errors}")
  endif()
endmacro()

run_step("cpack" "${CPACK}" -G DEB --config "${BUILD}/CPackConfig.cmake" -B "${ROOT}.made")
file(GLOB deb "${ROOT}.made/*.deb")
if(NOT deb MATCHES "/libadaptive-k-dev_${VERSION}_[a-z0-9]+\\.deb$")
  message(FATAL_ERROR "cpack made '${deb}', expected libadaptive-k-dev_${VERSION}_<architecture>.deb")
endif()

foreach(field "Package=^libadaptive-k-dev$" "Version=^${VERSION}$" "Section=^libdevel$" "Priority=^optional$"
        "Architecture=^[a-z0-9]+$" "Maintainer=^.+ <.+@.+>$" "Installed-Size=^[1-9][0-9]*$"
        "Depends=libc6.*libstdc\\+\\+6" "Recommends=^nlohmann-json3-dev" "Suggests=libboost-dev.*nvidia-cuda-toolkit"
        "Description=^Mixture-of-Experts routing.*pkg-config.*Apache-2\\.0")
  string(REGEX MATCH "^([^=]+)=(.*)$" matched "${field}")
  set(name "${CMAKE_MATCH_1}")
  set(expected "${CMAKE_MATCH_2}")
  run_step("dpkg-deb" "${DPKG_DEB}" --field "${deb}" "${name}")
  if(NOT output MATCHES "${expected}")
    message(FATAL_ERROR "the package's ${name} is '${output}', expected '${expected}'")
  endif()
endforeach()
run_step("dpkg-deb" "${DPKG_DEB}" --info "${deb}" shlibs)
if(NOT output MATCHES "^libadaptive_k [0-9.]+ libadaptive-k-dev")
  message(FATAL_ERROR "the package's shlibs are '${output}'")
endif()
run_step("dpkg-deb" "${DPKG_DEB}" --info "${deb}" triggers)

run_step("dpkg-deb" "${DPKG_DEB}" -x "${deb}" "${ROOT}")
file(REMOVE_RECURSE "${ROOT}.made")
file(GLOB top "${ROOT}/*")
string(REGEX MATCH "^/[^/]+" first "${PREFIX}")
if(NOT top STREQUAL "${ROOT}${first}")
  message(FATAL_ERROR "the package has '${top}', expected nothing outside ${PREFIX}")
endif()
file(GLOB copyright "${ROOT}${PREFIX}/share/doc/libadaptive-k-dev/copyright")
if(NOT copyright)
  message(FATAL_ERROR "the package has no licence where Debian looks for one")
endif()

# Where the C interface looks for presets, the package puts them.
file(GLOB_RECURSE library "${ROOT}${PREFIX}/*/libadaptive_k.so.${VERSION}")
file(STRINGS "${library}" folders REGEX "^/.*adaptive_k/calibrations$")
foreach(folder IN LISTS folders)
  if(NOT EXISTS "${ROOT}${folder}/reference-32x8.json")
    message(FATAL_ERROR "libadaptive_k looks for presets in ${folder}, which the package does not have")
  endif()
endforeach()
