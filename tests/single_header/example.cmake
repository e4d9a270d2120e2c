# Runs the shell lines of examples/single_header/README.md in a copy of what they need.
#   cmake -DSOURCE=... -DLINES=file -DWORK=<scratch folder> -DCOMPILER=... -P example.cmake

cmake_minimum_required(VERSION 3.22)
file(REMOVE_RECURSE "${WORK}")
foreach(name .cmake include examples/single_header)
  get_filename_component(folder "${WORK}/${name}" DIRECTORY)
  file(COPY "${SOURCE}/${name}" DESTINATION "${folder}")
endforeach()
set(ENV{CXX} "${COMPILER}")
set(ENV{CXXFLAGS} "-O0 -DADAPTIVE_K_NO_SCALAR_NOTE")  # as the page has it it takes 20 s
execute_process(COMMAND sh -eu "${LINES}" WORKING_DIRECTORY "${WORK}"
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE errors)
if(NOT result EQUAL 0 OR NOT output MATCHES "top-p saved [1-9][0-9]?\\.[0-9]%")
  message(FATAL_ERROR "the page's lines end with ${result}:\n${output}\n${errors}")
endif()
message("${output}")
file(REMOVE_RECURSE "${WORK}")
