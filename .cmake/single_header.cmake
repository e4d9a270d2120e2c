# adaptive_k_single_header: core, host and control as one header, <build>/single_include/adaptive_k/adaptive_k.hpp.

find_package(Python3 COMPONENTS Interpreter QUIET)
if(Python3_FOUND)
  set(ADAPTIVE_K_SINGLE_INCLUDE "${PROJECT_BINARY_DIR}/single_include")
  set(all "")
  if(ADAPTIVE_K_BUILD_TESTS)
    set(all ALL)
  endif()
  set(header "${ADAPTIVE_K_SINGLE_INCLUDE}/adaptive_k/adaptive_k.hpp")
  add_custom_target(adaptive_k_single_header ${all}
    COMMAND "${Python3_EXECUTABLE}" "${CMAKE_CURRENT_LIST_DIR}/single_header.py" "${header}"
    BYPRODUCTS "${header}" COMMENT "core, host and control as one header" VERBATIM)
else()
  message(STATUS "adaptive_k: no Python 3, so no single header")
endif()
