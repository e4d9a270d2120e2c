# Compiles a file that includes the headers, as COMPILER does without being told of any vectors, and
# looks for the note that this is slow: it must be there, under -Werror too, and only then.
#   cmake -DCOMPILER=... -DINCLUDE=... -P scalar_note.cmake

cmake_minimum_required(VERSION 3.22)

set(note "adaptive_k routes without vectors")
foreach(variant "yes=" "no=-march=x86-64-v3" "no=-DADAPTIVE_K_HOST_LIBRARY" "no=-DADAPTIVE_K_VECTORISE=0"
                "no=-DADAPTIVE_K_NO_SCALAR_NOTE")
  string(REGEX MATCH "^([a-z]*)=(.*)$" matched "${variant}")
  set(wanted "${CMAKE_MATCH_1}")
  set(flag ${CMAKE_MATCH_2})
  execute_process(
    COMMAND "${COMPILER}" -std=c++17 -Wall -Wextra -Werror -fsyntax-only ${flag} "-I${INCLUDE}"
            -include adaptive_k/host/simd/target.hpp -x c++ /dev/null
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    message(FATAL_ERROR "${COMPILER} ${flag} stops:\n${output}")
  endif()
  set(found no)
  if(output MATCHES "${note}")
    set(found yes)
  endif()
  if(NOT found STREQUAL wanted)
    message(FATAL_ERROR "${COMPILER} ${flag}: a note: ${found}, expected: ${wanted}\n${output}")
  endif()
endforeach()
