# Compiles and runs a C++ program and two C programs by the compilers and what pkg-config says of the
# package at PREFIX, and nothing else.
#   cmake -DPKG_CONFIG=... -DPREFIX=... -DVERSION=... -DCXX=... -DCC=... -DPROGRAMS=<this folder>
#         -DWORK=<scratch folder> -DFAST=regex of instruction sets -P pkg_config.cmake

cmake_minimum_required(VERSION 3.22)
file(REMOVE_RECURSE "${WORK}")
file(MAKE_DIRECTORY "${WORK}")
file(GLOB_RECURSE files "${PREFIX}/adaptive_k*.pc")
list(LENGTH files number)
if(NOT number EQUAL 4)
  message(FATAL_ERROR "${PREFIX} has ${number} files of pkg-config, expected 4: ${files}")
endif()
list(GET files 0 file)
get_filename_component(folder "${file}" DIRECTORY)
set(ENV{PKG_CONFIG_LIBDIR} "${folder}")  # what else is installed here does not count
unset(ENV{PKG_CONFIG_PATH})
get_filename_component(libraries "${folder}" DIRECTORY)
set(ENV{LD_LIBRARY_PATH} "${libraries}")

macro(run_step WHAT)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${WORK}" RESULT_VARIABLE result
                  OUTPUT_VARIABLE output ERROR_VARIABLE errors OUTPUT_STRIP_TRAILING_WHITESPACE)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${WHAT} failed (${result}):\n${ARGN}\n${output}\n${errors}")
  endif()
endmacro()

foreach(file IN LISTS files)
  get_filename_component(name "${file}" NAME_WLE)
  run_step("the version" "${PKG_CONFIG}" --modversion ${name})
  if(NOT output STREQUAL VERSION)
    message(FATAL_ERROR "pkg-config says ${name} is '${output}', expected ${VERSION}")
  endif()
endforeach()
run_step("the calibrations" "${PKG_CONFIG}" --variable=calibration_dir adaptive_k)
if(NOT EXISTS "${output}/reference-32x8.json")
  message(FATAL_ERROR "no reference-32x8.json in '${output}', where pkg-config says the presets are")
endif()

function(build_and_run name source prints)
  run_step("pkg-config" "${PKG_CONFIG}" --cflags --libs ${name})
  separate_arguments(flags UNIX_COMMAND "${output}")
  run_step("the compiler" ${ARGN} "${PROGRAMS}/${source}" -o "${name}" ${flags})
  run_step("the program" "${WORK}/${name}")
  if(NOT output MATCHES "${prints}")
    message(FATAL_ERROR "by ${name} the program printed '${output}', expected '${prints}'")
  endif()
  message("${name}: ${output}")
endfunction()
build_and_run(adaptive_k-host core_only/main.cpp "saved [1-9][0-9]?\\.[0-9]%" "${CXX}" -std=c++17)
build_and_run(adaptive_k-shared c_only/main.c "k = 1 1, by (${FAST})" "${CC}" -std=c99)
build_and_run(adaptive_k-c_host c_only/main.c "k = 1 1, by (${FAST})" "${CC}" -std=c99)
file(REMOVE_RECURSE "${WORK}")
