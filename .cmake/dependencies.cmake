# Every third-party package of the project, in one place: find it first, fetch it second.
# What is fetched is pinned by its hash, so a build is the same build next year.
# Each adaptive_k_need_* can be called as often as one likes; its targets exist afterwards.

include(FetchContent)

option(ADAPTIVE_K_FETCH "Download a missing dependency (else: stop and name it)"
       ${ADAPTIVE_K_IS_TOP_LEVEL})

# Finds package NAME. Imported targets are visible only in the folder that found them unless
# made global, and tests, bench and examples share theirs. Not among a parent's targets.
macro(_adaptive_k_find NAME)
  find_package(${NAME} ${ARGN} QUIET)
  if(ADAPTIVE_K_IS_TOP_LEVEL)
    get_directory_property(_adaptive_k_imported IMPORTED_TARGETS)
    foreach(_adaptive_k_target IN LISTS _adaptive_k_imported)
      set_property(TARGET ${_adaptive_k_target} PROPERTY IMPORTED_GLOBAL TRUE)
    endforeach()
  endif()
endmacro()

# Downloads NAME, adds it to the build, and marks the headers of TARGET as a system's, so that
# our warnings stay ours. A macro: the caller's options for the package must be seen by it.
macro(_adaptive_k_fetch NAME TARGET URL HASH)
  if(NOT ADAPTIVE_K_FETCH)
    message(FATAL_ERROR "adaptive_k: ${NAME} was not found. Install it, or set "
                        "ADAPTIVE_K_FETCH=ON to download it.")
  endif()
  message(STATUS "adaptive_k: ${NAME} was not found, fetching ${URL}")
  set(CMAKE_POLICY_DEFAULT_CMP0077 NEW)  # let plain variables set the package's options
  set(CMAKE_POLICY_DEFAULT_CMP0135 NEW)  # time stamps of extraction: rebuild when the URL changes
  FetchContent_Declare(${NAME} URL ${URL} URL_HASH SHA256=${HASH} ${ARGN})
  FetchContent_MakeAvailable(${NAME})
  if(TARGET ${TARGET})
    get_target_property(_adaptive_k_real ${TARGET} ALIASED_TARGET)
    if(NOT _adaptive_k_real)
      set(_adaptive_k_real ${TARGET})
    endif()
    get_target_property(_adaptive_k_dirs ${_adaptive_k_real} INTERFACE_INCLUDE_DIRECTORIES)
    set_property(TARGET ${_adaptive_k_real}
                 PROPERTY INTERFACE_SYSTEM_INCLUDE_DIRECTORIES ${_adaptive_k_dirs})
  endif()
endmacro()

# GTest::gtest, GTest::gtest_main
function(adaptive_k_need_googletest)
  if(TARGET GTest::gtest_main)
    return()
  endif()
  _adaptive_k_find(GTest)
  if(NOT TARGET GTest::gtest_main)
    set(INSTALL_GTEST OFF)
    _adaptive_k_fetch(googletest GTest::gtest
      https://github.com/google/googletest/archive/refs/tags/v1.14.0.tar.gz
      8ad598c73ad796e0d8280b082cebd82a630d73e73cd3c70057938a6501bba5d7)
  endif()
endfunction()

# benchmark::benchmark, benchmark::benchmark_main
function(adaptive_k_need_benchmark)
  if(TARGET benchmark::benchmark)
    return()
  endif()
  _adaptive_k_find(benchmark)
  if(NOT TARGET benchmark::benchmark)
    set(BENCHMARK_ENABLE_TESTING OFF)
    set(BENCHMARK_ENABLE_INSTALL OFF)
    _adaptive_k_fetch(benchmark benchmark::benchmark
      https://github.com/google/benchmark/archive/refs/tags/v1.8.3.tar.gz
      6bc180a57d23d4d9515519f92b0c83d61b05b5bab188961f36ac7b06b0d9e9ce)
  endif()
endfunction()

# nlohmann_json::nlohmann_json
function(adaptive_k_need_nlohmann_json)
  if(TARGET nlohmann_json::nlohmann_json)
    return()
  endif()
  _adaptive_k_find(nlohmann_json 3.9)
  if(NOT TARGET nlohmann_json::nlohmann_json)
    set(JSON_BuildTests OFF)
    set(JSON_Install OFF)
    _adaptive_k_fetch(nlohmann_json nlohmann_json::nlohmann_json
      https://github.com/nlohmann/json/releases/download/v3.11.3/json.tar.xz
      d6c65aca6b1ed68e7a182f4757257b107ae403032760ed6ef121c9d55e81757d)
  endif()
endfunction()

# CLI11::CLI11
function(adaptive_k_need_cli11)
  if(TARGET CLI11::CLI11)
    return()
  endif()
  _adaptive_k_find(CLI11)
  if(NOT TARGET CLI11::CLI11)
    set(CLI11_INSTALL OFF)
    set(CLI11_PRECOMPILED OFF)
    set(CLI11_BUILD_DOCS OFF)
    set(CLI11_BUILD_TESTS OFF)
    set(CLI11_BUILD_EXAMPLES OFF)
    _adaptive_k_fetch(CLI11 CLI11::CLI11
      https://github.com/CLIUtils/CLI11/archive/refs/tags/v2.4.1.tar.gz
      73b7ec52261ce8fe980a29df6b4ceb66243bb0b779451dbd3d014cfec9fdbb58)
  endif()
endfunction()

# Eigen3::Eigen
function(adaptive_k_need_eigen)
  if(TARGET Eigen3::Eigen)
    return()
  endif()
  _adaptive_k_find(Eigen3 3.3 NO_MODULE)
  if(NOT TARGET Eigen3::Eigen)
    # Only unpacked (its build cannot be told not to install): SOURCE_SUBDIR names no CMake project.
    _adaptive_k_fetch(adaptive_k_eigen none
      https://gitlab.com/libeigen/eigen/-/archive/3.4.0/eigen-3.4.0.tar.gz
      8586084f71f9bde545ee7fa6d00288b264a2b7ac3607b974e54d13e7162c1c72
      SOURCE_SUBDIR only_unpack)
    add_library(Eigen3::Eigen INTERFACE IMPORTED GLOBAL)
    target_include_directories(Eigen3::Eigen SYSTEM INTERFACE ${adaptive_k_eigen_SOURCE_DIR})
  endif()
endfunction()

# fmt::fmt
function(adaptive_k_need_fmt)
  if(TARGET fmt::fmt)
    return()
  endif()
  _adaptive_k_find(fmt)
  if(NOT TARGET fmt::fmt)
    set(FMT_INSTALL OFF)
    set(FMT_DOC OFF)
    set(FMT_TEST OFF)
    _adaptive_k_fetch(fmt fmt::fmt
      https://github.com/fmtlib/fmt/archive/refs/tags/9.1.0.tar.gz
      5dea48d1fcddc3ec571ce2058e13910a0d4a6bab4cc09a809d8b1dd1c88ae6f2)
  endif()
endfunction()

# adaptive_k_sha256: OpenSSL's where it is installed (ADAPTIVE_K_BENCH_OPENSSL), else PicoSHA2.
function(adaptive_k_need_sha256)
  if(TARGET adaptive_k_sha256)
    return()
  endif()
  add_library(adaptive_k_sha256 INTERFACE)
  _adaptive_k_find(OpenSSL COMPONENTS Crypto)
  if(TARGET OpenSSL::Crypto)
    target_link_libraries(adaptive_k_sha256 INTERFACE OpenSSL::Crypto)
    target_compile_definitions(adaptive_k_sha256 INTERFACE ADAPTIVE_K_BENCH_OPENSSL)
  else()
    # Only unpacked: one header, and its build knows nothing but tests.
    _adaptive_k_fetch(adaptive_k_picosha2 none
      https://github.com/okdshin/PicoSHA2/archive/refs/tags/v1.0.0.tar.gz
      dec99b43440157847cf5dadfad060b9154749523da28eb1599872f87d1ea8e4b
      SOURCE_SUBDIR only_unpack)
    target_include_directories(adaptive_k_sha256 SYSTEM INTERFACE ${adaptive_k_picosha2_SOURCE_DIR})
  endif()
endfunction()
