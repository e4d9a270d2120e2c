# Builds SOURCE with COMPILER and FLAGS, runs it, and compares its hash with the recorded one.
#   cmake -DCOMPILER=... -DFLAGS=... -DINCLUDE=... -DSOURCE=... -DRECORDED=... -DPROGRAM=...
#         [-DEMULATOR=command] [-DINSTRUCTIONS=what it must say that it runs on] -P ...

execute_process(
  COMMAND "${COMPILER}" -std=c++17 -DADAPTIVE_K_NO_SCALAR_NOTE ${FLAGS} "-I${INCLUDE}" "${SOURCE}" -o "${PROGRAM}"
  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
if(NOT result EQUAL 0)
  message(FATAL_ERROR "${COMPILER} ${FLAGS} does not compile it:\n${output}")
endif()

execute_process(COMMAND ${EMULATOR} "${PROGRAM}"
                RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE instructions)
file(REMOVE "${PROGRAM}")
file(READ "${RECORDED}" recorded)
if(NOT result EQUAL 0 OR NOT output STREQUAL recorded)
  message(FATAL_ERROR
    "other bits under ${COMPILER} ${FLAGS}. Recorded:\n${recorded}\nhere:\n${output}\n"
    "If every variant prints the same new hash, and the change is meant: record it in ${RECORDED}")
endif()
if(INSTRUCTIONS AND NOT instructions STREQUAL "${INSTRUCTIONS}\n")
  message(FATAL_ERROR "it ran on '${instructions}', not on ${INSTRUCTIONS}")
endif()
message("${output}")
