# Configures the project with architectures chosen in every way that CMake knows, and reads from the
# compile commands what nvcc would be told. Nothing is compiled.

cmake_minimum_required(VERSION 3.22)
string(RANDOM LENGTH 10 unique)
set(work "$ENV{TMPDIR}")
if(NOT work)
  set(work /tmp)
endif()
set(work "${work}/adaptive_k_architectures_${unique}")
set(failures "")

function(expect WHAT FLAGS)
  execute_process(
    COMMAND "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${work}" -G "${GENERATOR}"
      "-DCMAKE_CXX_COMPILER=${CXX}" "-DCMAKE_CUDA_COMPILER=${NVCC}" -DADAPTIVE_K_CUDA=ON
      -DADAPTIVE_K_BUILD_TESTS=OFF -DADAPTIVE_K_BUILD_BENCH=OFF -DADAPTIVE_K_BUILD_EXAMPLES=OFF
      -DADAPTIVE_K_FETCH=OFF ${ARGN}
    RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(WHAT STREQUAL "native" AND output MATCHES "set to \"native\", but no GPU")
    return()  # so the choice came through
  elseif(NOT result EQUAL 0)
    file(REMOVE_RECURSE "${work}")
    message(FATAL_ERROR "${WHAT}: configuring failed:\n${output}")
  endif()
  file(READ "${work}/compile_commands.json" commands)
  string(REGEX MATCH "[^\n]* -c [^\n]*/permute\\.cu[^\n]*" command "${commands}")
  string(REGEX MATCHALL "--generate-code=[^ ]*|-arch=[^ ]*|-gencode[^ ]*" found "${command}")
  list(JOIN found " " found)
  string(REPLACE "\\\"" "" found "${found}")
  if(command STREQUAL "" OR NOT found MATCHES "^${FLAGS}$")
    set(failures "${failures}\n${WHAT}: nvcc is told '${found}', not '${FLAGS}'" PARENT_SCOPE)
  endif()
endfunction()

set(both "--generate-code=arch=compute_90,code=\\[compute_90,sm_90\\]")
set(real "--generate-code=arch=compute_90,code=\\[sm_90\\]")
set(ENV{CUDAARCHS} 90)
expect("CUDAARCHS=90" "${both}")
unset(ENV{CUDAARCHS})
expect("CMAKE_CUDA_ARCHITECTURES=OFF" "" -DCMAKE_CUDA_ARCHITECTURES=OFF)
expect("90-real" "${real}" -DCMAKE_CUDA_ARCHITECTURES=90-real)
expect("all-major" "-arch=all-major" -DCMAKE_CUDA_ARCHITECTURES=all-major)
expect("native" "(-arch=native|--generate-code=.*)" -DCMAKE_CUDA_ARCHITECTURES=native)
# Without a word it is the project's own list, the last one as PTX too.
expect("the project's" "--generate-code=arch=compute_80,code=\\[sm_80\\] ${both}"
       -UCMAKE_CUDA_ARCHITECTURES "-DADAPTIVE_K_CUDA_ARCHITECTURES=80\;90")
file(REMOVE_RECURSE "${work}")
if(failures)
  message(FATAL_ERROR "${failures}")
endif()
