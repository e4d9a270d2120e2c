# ptx_compile(OUT file.cu [NAME name] [TARGETS sm...] [FLAGS flag...] [LAUNCHER program]): sets OUT to an object with the file's host code and PTX
# for each of TARGETS (ADAPTIVE_K_PTX_TARGETS if not given), of which a run takes the highest, or the one that the environment variable
# PTX_SM names. NAME tells objects of one source apart.
set(ADAPTIVE_K_PTX_TARGETS 75 80 90 CACHE STRING "Compute capabilities to compile the tests' kernels for")
function(ptx_compile OUT SOURCE)
  cmake_parse_arguments(PARSE_ARGV 2 ptx "" "NAME;LAUNCHER" "TARGETS;FLAGS")
  get_filename_component(source "${SOURCE}" ABSOLUTE)
  get_filename_component(name "${SOURCE}" NAME_WE)
  if(ptx_NAME)
    set(name "${ptx_NAME}")
  endif()
  set(object "${CMAKE_CURRENT_BINARY_DIR}/${name}.ptx.o")
  if(NOT ptx_TARGETS)
    set(ptx_TARGETS ${ADAPTIVE_K_PTX_TARGETS})
  endif()
  set(targets "")
  foreach(sm IN LISTS ptx_TARGETS)
    list(APPEND targets -gencode "arch=compute_${sm},code=compute_${sm}")
  endforeach()
  set(gtest_folders "$<TARGET_PROPERTY:GTest::gtest,INTERFACE_INCLUDE_DIRECTORIES>")
  add_custom_command(OUTPUT "${object}"
    COMMAND ${ptx_LAUNCHER} "${CMAKE_CUDA_COMPILER}" -std=c++17 --extended-lambda -cudart none ${targets}
            -lineinfo --no-compress -Wno-deprecated-gpu-targets -O1 -MD -MF "${object}.d"
            -I "${CMAKE_CURRENT_FUNCTION_LIST_DIR}" "-I;$<JOIN:${gtest_folders},;-I;>"
            ${ptx_FLAGS} -c "${source}" -o "${object}"
    DEPENDS "${source}" DEPFILE "${object}.d" COMMENT "nvcc ${name}" VERBATIM COMMAND_EXPAND_LISTS)
  set(${OUT} "${object}" PARENT_SCOPE)
endfunction()
