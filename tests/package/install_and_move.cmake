# Installs BUILD into a folder that is then renamed to PREFIX.

cmake_minimum_required(VERSION 3.22)
file(REMOVE_RECURSE "${PREFIX}" "${PREFIX}.staged")
execute_process(COMMAND "${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${PREFIX}.staged"
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "install failed (${result}):\n${output}")
endif()
file(RENAME "${PREFIX}.staged" "${PREFIX}")
