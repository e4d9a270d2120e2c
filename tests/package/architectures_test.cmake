# Which devices a package's kernels leave out: cmake -DSOURCE=... -P architectures_test.cmake
cmake_minimum_required(VERSION 3.22)
include("${SOURCE}/.cmake/architectures.cmake")

function(expect BUILT WANTED UNCOVERED)
  adaptive_k_uncovered_architectures("${BUILT}" "${WANTED}" found)
  if(NOT "${found}" STREQUAL "${UNCOVERED}")
    message(SEND_ERROR "built for '${BUILT}', wanted '${WANTED}': '${found}' uncovered, expected '${UNCOVERED}'")
  endif()
endfunction()

expect("90" "75" "75")                  # nvcc's default where a project says nothing
expect("90" "90;100;120" "")            # the PTX goes on
expect("90-real" "90;100" "100")        # machine code does not
expect("80-real" "80;86;89;90" "90")    # within its major number it does
expect("86-real" "80" "80")
expect("75-real;80-real;90" "70;72;75;86;121" "70;72")
expect("80-virtual" "75;80;120" "75")
expect("90a-real" "90;100" "100")
expect("90a" "90" "")
expect("120" "90-real;120-virtual" "90")
expect("native" "75" "")
expect("90" "native" "")
expect("90" "OFF" "")
