# For builds of llama.cpp that load nothing at run time (BUILD_SHARED_LIBS=OFF): edits a source tree so that
# ggml has the plug-in in it. Two files are changed, at places that must look as expected, or nothing is.
#   cmake -DLLAMA_CPP_DIR=~/llama.cpp -P examples/llama_cpp/patch.cmake
#   cmake -DLLAMA_CPP_DIR=~/llama.cpp -DREVERSE=ON -P examples/llama_cpp/patch.cmake
# Then build llama.cpp as ever; ADAPTIVE_K in the environment turns it on.

cmake_minimum_required(VERSION 3.22)

get_filename_component(own "${CMAKE_CURRENT_LIST_DIR}" REALPATH)
set(tree "${LLAMA_CPP_DIR}/ggml")
if(NOT EXISTS "${tree}/src/ggml-backend-reg.cpp")
  message(FATAL_ERROR "LLAMA_CPP_DIR is '${LLAMA_CPP_DIR}', expected a source tree of llama.cpp")
endif()

# number_of(TEXT PART RESULT): how often PART is in TEXT.
function(number_of TEXT PART RESULT)
  string(REPLACE "${PART}" "" without "${TEXT}")
  string(LENGTH "${TEXT}" before)
  string(LENGTH "${without}" after)
  string(LENGTH "${PART}" size)
  math(EXPR number "(${before} - ${after}) / ${size}")
  set(${RESULT} ${number} PARENT_SCOPE)
endfunction()

set(edits "")
# edit(FILE ANCHOR ADDED WHERE): ADDED goes BEFORE or AFTER the anchor, which must be there once.
function(edit FILE ANCHOR ADDED WHERE)
  file(READ "${tree}/${FILE}" text)
  if(DEFINED text_of_${FILE})
    set(text "${text_of_${FILE}}")
  endif()
  number_of("${text}" "${ADDED}" added)
  if(REVERSE)
    if(NOT added EQUAL 1)
      message(FATAL_ERROR "${tree}/${FILE}: what was added is there ${added} times, expected once: nothing is changed")
    endif()
    string(REPLACE "${ADDED}" "" text "${text}")
  else()
    number_of("${text}" "${ANCHOR}" anchors)
    if(NOT added EQUAL 0)
      message(FATAL_ERROR "${tree}/${FILE}: is edited already")
    endif()
    if(NOT anchors EQUAL 1)
      message(FATAL_ERROR "${tree}/${FILE}: '${ANCHOR}' is there ${anchors} times, expected once: this llama.cpp is "
                          "not known, nothing is changed")
    endif()
    if(WHERE STREQUAL "BEFORE")
      string(REPLACE "${ANCHOR}" "${ADDED}${ANCHOR}" text "${text}")
    else()
      string(REPLACE "${ANCHOR}" "${ANCHOR}${ADDED}" text "${text}")
    endif()
  endif()
  set(text_of_${FILE} "${text}" PARENT_SCOPE)
  list(APPEND edits "${FILE}")
  list(REMOVE_DUPLICATES edits)
  set(edits "${edits}" PARENT_SCOPE)
endfunction()

edit(src/ggml-backend-reg.cpp "namespace fs = std::filesystem;\n"
"// adaptive-k
extern \"C\" ggml_backend_reg_t ggml_backend_adaptive_k_reg(void);

" BEFORE)
edit(src/ggml-backend-reg.cpp "        register_backend(ggml_backend_cpu_reg());
#endif
" "        register_backend(ggml_backend_adaptive_k_reg()); // null where it is off
" AFTER)
edit(src/CMakeLists.txt "target_link_libraries(ggml PUBLIC ggml-base)
" "include(\"${own}/static.cmake\") # adaptive-k
" AFTER)

# All of them fit: now they are written.
foreach(file IN LISTS edits)
  file(WRITE "${tree}/${file}" "${text_of_${file}}")
  message(STATUS "${tree}/${file}: edited")
endforeach()
