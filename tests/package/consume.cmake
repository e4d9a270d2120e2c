# Configures, builds and runs the project CONSUMER the way a user would, in a folder outside the
# source tree.
#   cmake -DSOURCE=... -DGENERATOR=... -DCXX=... -DCONSUMER=... [-DPREFIX=<installed package>]
#         [-DPRINTS=regex] [-DREFUSED=regex] [-DOPTIONS=option;...] [-DPROGRAM=name]
#         [-DSTEPS=configure|build|run|install] [-DSECOND=folder] [-DBUILT=file;...]
#         [-DEMULATOR=command;...] [-DBESIDE=file;...] -P consume.cmake
# BESIDE: files that are copied into CONSUMER.
# STEPS: how far to go; run if not given. "install" installs CONSUMER, then builds and runs the
# project in its subfolder SECOND against what was installed; of CONSUMER nothing is compiled: BUILT are
# the libraries that it would compile, from this project's own build.
# REFUSED: the configuration must fail with these words. PRINTS: what the last step must print.

cmake_minimum_required(VERSION 3.22)

set(temporary "$ENV{TMPDIR}")
if(NOT temporary)
  set(temporary /tmp)
endif()
string(RANDOM LENGTH 10 unique)
set(work "${temporary}/adaptive_k_package_${unique}")
file(MAKE_DIRECTORY "${work}")

unset(ENV{ADAPTIVE_K_CALIBRATIONS})  # only the package's own files count here

function(finish)
  file(REMOVE_RECURSE "${work}")
  if(ARGN)
    message(FATAL_ERROR ${ARGN})
  endif()
endfunction()

macro(run_step WHAT)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${work}"
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
  if(NOT result EQUAL 0)
    finish("${WHAT} failed (${result}):\n${output}\n${errors}")
    return()
  endif()
endmacro()

macro(check_prints WHAT)
  if(PRINTS AND NOT output MATCHES "${PRINTS}")
    finish("${WHAT} printed '${output}', not '${PRINTS}'")
    return()
  endif()
endmacro()

if(NOT PROGRAM)
  set(PROGRAM consumer)
endif()
if(NOT STEPS)
  set(STEPS run)
endif()

file(COPY "${CONSUMER}/" ${BESIDE} DESTINATION "${work}/source")

if(PREFIX)
  list(APPEND OPTIONS "-DCMAKE_PREFIX_PATH=${PREFIX}")
endif()
if(NOT OPTIONS MATCHES "CMAKE_TOOLCHAIN_FILE")
  list(APPEND OPTIONS "-DCMAKE_CXX_COMPILER=${CXX}")
endif()

# "None": a type without flags of its own, so that most of the time does not go into optimising.
set(configure "${CMAKE_COMMAND}" -G "${GENERATOR}" -DCMAKE_EXPORT_COMPILE_COMMANDS=ON
    -DCMAKE_BUILD_TYPE=None --no-warn-unused-cli)

if(REFUSED)
  execute_process(COMMAND ${configure} ${OPTIONS} -S "${work}/source" -B "${work}/build"
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  string(REGEX REPLACE "[ \n]+" " " output "${output}")  # CMake breaks its lines
  if(result EQUAL 0)
    finish("the configuration succeeded, but should be refused")
  elseif(NOT output MATCHES "${REFUSED}")
    finish("refused, but without '${REFUSED}':\n${output}")
  else()
    finish()
  endif()
  return()
endif()

run_step("configure" ${configure} ${OPTIONS} -S "${work}/source" -B "${work}/build")
if(PREFIX AND EXISTS "${work}/build/compile_commands.json")
  # What was installed must stand without the source tree.
  file(READ "${work}/build/compile_commands.json" commands)
  string(REPLACE "${PREFIX}/" "/prefix/" commands "${commands}")  # itself in a build tree
  string(FIND "${commands}" "${SOURCE}" position)
  if(NOT position EQUAL -1)
    finish("the installed package points back to the source tree:\n${commands}")
    return()
  endif()
endif()
if(STEPS STREQUAL "configure")
  check_prints("the configuration")
  finish()
  return()
endif()

if(STEPS STREQUAL "install")
  foreach(file IN LISTS BUILT)  # with the links that lead to a shared library
    get_filename_component(name "${file}" NAME_WE)
    get_filename_component(folder "${file}" DIRECTORY)
    file(GLOB files "${folder}/${name}.*")
    file(COPY ${files} DESTINATION "${work}/build/adaptive_k")
  endforeach()
else()
  run_step("build" "${CMAKE_COMMAND}" --build "${work}/build")
endif()
if(NOT PREFIX AND EXISTS "${work}/build/bin/adaptive-k")
  finish("the subdirectory built the bench")
  return()
endif()
if(STEPS STREQUAL "build")
  check_prints("the build")
  finish()
  return()
endif()

set(program "${work}/build/${PROGRAM}")
if(STEPS STREQUAL "install")
  run_step("install" "${CMAKE_COMMAND}" --install "${work}/build" --prefix "${work}/prefix")
  run_step("configure against it" ${configure} "-DCMAKE_CXX_COMPILER=${CXX}"
           "-DCMAKE_PREFIX_PATH=${work}/prefix" -S "${work}/source/${SECOND}" -B "${work}/second")
  run_step("build against it" "${CMAKE_COMMAND}" --build "${work}/second")
  set(program "${work}/second/${PROGRAM}")
endif()
run_step("the program" ${EMULATOR} "${program}")
check_prints("the program")
finish()
message("${output}")
