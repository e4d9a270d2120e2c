# COMMAND must print JSON and nothing else on stdout, with something in the array KEY, or, where KEY is
# empty, in the array that it is.
cmake_minimum_required(VERSION 3.22)
execute_process(COMMAND ${COMMAND} OUTPUT_VARIABLE output RESULT_VARIABLE status)
if(NOT status EQUAL 0)
  message(FATAL_ERROR "status ${status}")
endif()
string(JSON entries ERROR_VARIABLE error LENGTH "${output}" ${KEY})
if(error OR NOT entries GREATER 0)
  message(FATAL_ERROR "no JSON, or none with entries in it (${error}):\n${output}")
endif()
