# Compiles each of HEADERS alone, after PRELUDE. Lists all that fail, not only the first.
#   cmake -DCOMPILER=... -DFLAGS=... -DHEADERS=... -DINCLUDES=... -DPRELUDE=... -DWORK=... -P ...
# FLAGS says to check alone, as -fsyntax-only does. CUDA=ON: the files are CUDA's.

file(MAKE_DIRECTORY "${WORK}")
set(include_flags "")
list(REMOVE_ITEM INCLUDES "")
foreach(directory IN LISTS INCLUDES)
  list(APPEND include_flags "-I${directory}")
endforeach()
foreach(directory IN LISTS SYSTEM_INCLUDES)
  list(APPEND include_flags -isystem "${directory}")
endforeach()

set(failed "")
foreach(header IN LISTS HEADERS)
  string(MAKE_C_IDENTIFIER "${header}" name)
  # The second mention shows that the header guards itself.
  set(file "${WORK}/${name}.cpp")
  if(CUDA)
    set(file "${WORK}/${name}.cu")
  endif()
  file(WRITE "${file}" "#include \"${header}\"\n#include \"${header}\"\n")
  execute_process(
    COMMAND "${COMPILER}" ${FLAGS} ${include_flags} -include "${PRELUDE}" "${file}"
    WORKING_DIRECTORY "${WORK}"
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    list(APPEND failed "${header}")
    message("---- ${header}\n${output}")
  endif()
endforeach()

list(LENGTH HEADERS count)
if(failed)
  message(FATAL_ERROR "do not compile alone: ${failed}")
endif()
message("${count} headers compile alone under ${COMPILER} ${FLAGS}")
