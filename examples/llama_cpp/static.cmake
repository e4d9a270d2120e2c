# The plug-in as a part of libggml: included by a ggml/src/CMakeLists.txt that patch.cmake edited.

set(adaptive_k_root "${CMAKE_CURRENT_LIST_DIR}/../..")
set(ADAPTIVE_K_CALIBRATION ON)
set(ADAPTIVE_K_CUDA OFF)
set(ADAPTIVE_K_INSTALL OFF)
set(adaptive_k_pic "${CMAKE_POSITION_INDEPENDENT_CODE}")
set(CMAKE_POSITION_INDEPENDENT_CODE ON)
find_package(Boost 1.70 QUIET)  # for metrics
find_package(Threads REQUIRED)
add_subdirectory("${adaptive_k_root}" "${CMAKE_CURRENT_BINARY_DIR}/adaptive_k" EXCLUDE_FROM_ALL)
set(CMAKE_POSITION_INDEPENDENT_CODE "${adaptive_k_pic}")

foreach(source backend experts moe_layer routing settings)
  target_sources(ggml PRIVATE "${CMAKE_CURRENT_LIST_DIR}/plugin/${source}.cpp")
endforeach()
target_include_directories(ggml PRIVATE "${CMAKE_CURRENT_SOURCE_DIR}")  # ggml-backend-impl.h
target_compile_definitions(ggml PRIVATE "ADAPTIVE_K_GGML_VERSION=\"${GGML_VERSION}\"")
target_link_libraries(ggml PRIVATE adaptive_k::host adaptive_k::calibration Threads::Threads)
if(TARGET adaptive_k::observability)
  target_link_libraries(ggml PRIVATE adaptive_k::observability)
  target_compile_definitions(ggml PRIVATE ADAPTIVE_K_GGML_METRICS=1)
endif()
