# For tests that run a compiler themselves.

# The compilers to try: g++ and clang++ where they are installed, else that of this build.
function(adaptive_k_toolchain_compilers RESULT)
  set(found "")
  foreach(name g++ clang++)
    find_program(ADAPTIVE_K_TEST_${name} ${name})
    mark_as_advanced(ADAPTIVE_K_TEST_${name})
    if(ADAPTIVE_K_TEST_${name})
      list(APPEND found "${ADAPTIVE_K_TEST_${name}}")
    endif()
  endforeach()
  if(NOT found)
    set(found "${CMAKE_CXX_COMPILER}")
  endif()
  set(${RESULT} "${found}" PARENT_SCOPE)
endfunction()
