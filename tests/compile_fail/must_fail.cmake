# Checks that SOURCE compiles as it is, and fails for the right reason when made bad.
#   cmake -DCOMPILER=... -DSOURCE=... -DINCLUDE=... -DBAD_FLAGS=... -DEXPECT=... -P ...

set(command "${COMPILER}" -std=c++17 -fsyntax-only -Wall -Wextra "-I${INCLUDE}")

execute_process(COMMAND ${command} "${SOURCE}"
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} should compile when nothing is wrong in it:\n${output}")
endif()

execute_process(COMMAND ${command} -DADAPTIVE_K_BAD_LINE ${BAD_FLAGS} "${SOURCE}"
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(result EQUAL 0)
  message(FATAL_ERROR "${SOURCE} compiled, but it must be refused")
endif()
# On the line of the error itself: compilers also quote source lines around it.
if(NOT output MATCHES "error: [^\n]*${EXPECT}")
  message(FATAL_ERROR "${SOURCE} was refused, but with no error like '${EXPECT}':\n${output}")
endif()
message("refused with: ${CMAKE_MATCH_0}")
