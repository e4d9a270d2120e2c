# Builds and runs the project CONSUMER the way a user would, in a folder outside the source tree.
#   cmake -DSOURCE=... -DBUILD=... -DGENERATOR=... -DCOMPILER=... -DCONSUMER=... -DINSTALLED=ON|OFF
#         [-DPRINTS=regex] [-DREFUSED=regex] [-DOPTIONS=option;...] [-DPROGRAM=name]
#         [-DKERNEL_OBJECTS=object;... -DARCHIVER=...] -P consume.cmake
# KERNEL_OBJECTS take the place of the machine code in the installed adaptive_k::kernels: the same
# kernels as the interpreter reads them, where there is no GPU to run the package's own.

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

if(NOT PROGRAM)
  set(PROGRAM consumer)
endif()

file(COPY "${CONSUMER}/" DESTINATION "${work}/source")

if(INSTALLED)
  run_step("install" "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${work}/staged")
  # A package that is moved after its installation must still find its own files.
  file(RENAME "${work}/staged" "${work}/moved")
  list(APPEND OPTIONS "-DCMAKE_PREFIX_PATH=${work}/moved")
  if(KERNEL_OBJECTS)
    file(GLOB_RECURSE archive "${work}/moved/libadaptive_k_kernels.a")
    run_step("list members" "${ARCHIVER}" t "${archive}")
    string(REGEX MATCHALL "[^\n]+\\.cu\\.o" members "${output}")
    run_step("drop machine code" "${ARCHIVER}" d "${archive}" ${members})
    run_step("put PTX" "${ARCHIVER}" qs "${archive}" ${KERNEL_OBJECTS})
  endif()
endif()

set(configure "${CMAKE_COMMAND}" -S "${work}/source" -B "${work}/build" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${COMPILER}" -DCMAKE_BUILD_TYPE=Release
    -DCMAKE_EXPORT_COMPILE_COMMANDS=ON ${OPTIONS})

if(REFUSED)
  execute_process(COMMAND ${configure} RESULT_VARIABLE result OUTPUT_VARIABLE output
                  ERROR_VARIABLE output)
  if(result EQUAL 0)
    finish("the configuration succeeded, but should be refused")
  elseif(NOT output MATCHES "${REFUSED}")
    finish("refused, but without '${REFUSED}':\n${output}")
  else()
    finish()
  endif()
  return()
endif()

run_step("configure" ${configure})
run_step("build" "${CMAKE_COMMAND}" --build "${work}/build")

if(INSTALLED)
  # What was installed must stand without the source tree.
  file(READ "${work}/build/compile_commands.json" commands)
  string(FIND "${commands}" "${SOURCE}" position)
  if(NOT position EQUAL -1)
    finish("the installed package points back to the source tree:\n${commands}")
    return()
  endif()
else()
  # As a subdirectory, we add none of our tests, programs or install rules to the parent.
  if(EXISTS "${work}/build/bin/adaptive-k")
    finish("the subdirectory built the bench")
    return()
  endif()
endif()

run_step("the program" "${work}/build/${PROGRAM}")
if(NOT output MATCHES "${PRINTS}")
  finish("the program printed '${output}', not '${PRINTS}'")
  return()
endif()
finish()
message("${output}")
