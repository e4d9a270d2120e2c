# Installs by the shell lines of examples/INSTALL.md, from a copy of the sources, and builds and runs a project of its
# CMake lines against what was installed; and one of its C lines, which must find the installed presets.
#   cmake -DSOURCE=... -DSHELL_LINES=file -DCMAKE_LINES=file -DC_SOURCE=file -DCOMPILER=... -P install.cmake

set(temporary "$ENV{TMPDIR}")
if(NOT temporary)
  set(temporary /tmp)
endif()
string(RANDOM LENGTH 10 unique)
set(work "${temporary}/adaptive_k_docs_${unique}")
set(ENV{PREFIX} "${work}/prefix")
set(ENV{CXX} "${COMPILER}")
set(ENV{CMAKE_BUILD_TYPE} None)  # without optimising, which takes longer than the rest
unset(ENV{ADAPTIVE_K_CALIBRATIONS})

foreach(name .cmake calibrations include kernels CMakeLists.txt LICENSE)
  file(COPY "${SOURCE}/${name}" DESTINATION "${work}/source")
endforeach()
file(READ "${CMAKE_LINES}" lines)
file(WRITE "${work}/engine/CMakeLists.txt"
  "cmake_minimum_required(VERSION 3.22)\nproject(engine LANGUAGES C CXX)\n"
  "add_executable(engine main.cpp)\n${lines}\n"
  "add_executable(engine_c \"${C_SOURCE}\")\ntarget_link_libraries(engine_c PRIVATE adaptive_k::shared)\n")
file(WRITE "${work}/engine/main.cpp" [[
#include <adaptive_k/calibration/preset.hpp>

#include <cstdio>
#include <vector>

int main() {
  const adaptive_k::router router = adaptive_k::from_preset("reference-32x8");
  const std::vector<float> logits(32, 1.0f);
  const auto routed = router.route(0, adaptive_k::logits_view<float>{logits.data(), 1, 32});
  std::printf("runs %d experts\n", static_cast<int>(routed.topk_counts[0]));
  return routed.result.ok() ? 0 : 1;
}
]])

macro(run_step FOLDER)
  execute_process(COMMAND ${ARGN} WORKING_DIRECTORY "${work}/${FOLDER}"
                  RESULT_VARIABLE result OUTPUT_VARIABLE output ERROR_VARIABLE output)
  if(NOT result EQUAL 0)
    file(REMOVE_RECURSE "${work}")
    message(FATAL_ERROR "${ARGN} failed (${result}):\n${output}")
  endif()
endmacro()
run_step(source sh -eu "${SHELL_LINES}")
run_step(engine "${CMAKE_COMMAND}" -S . -B build "-DCMAKE_PREFIX_PATH=$ENV{PREFIX}")
run_step(engine "${CMAKE_COMMAND}" --build build)
run_step(engine build/engine_c)
run_step(engine build/engine)
file(REMOVE_RECURSE "${work}")
if(NOT output MATCHES "runs [1-8] experts")
  message(FATAL_ERROR "the engine printed '${output}'")
endif()
