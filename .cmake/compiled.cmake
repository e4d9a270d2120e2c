# The compiled libraries: what all of them have in common.

# What a linker that is called for C must be told of C++: the libraries beyond C's own that the
# compiler would have added. In a project that uses C alone nobody else does.
set(ADAPTIVE_K_CXX_LIBRARIES ${CMAKE_CXX_IMPLICIT_LINK_LIBRARIES})
list(FILTER ADAPTIVE_K_CXX_LIBRARIES INCLUDE REGEX "^(stdc\\+\\+|c\\+\\+|c\\+\\+abi|m)$")
list(REMOVE_DUPLICATES ADAPTIVE_K_CXX_LIBRARIES)
list(TRANSFORM ADAPTIVE_K_CXX_LIBRARIES REPLACE "^.+$" "$<$<LINK_LANGUAGE:C>:\\0>"
     OUTPUT_VARIABLE ADAPTIVE_K_CXX_RUNTIME)

# adaptive_k_add_compiled(NAME TYPE source...): adaptive_k_<NAME>, known as adaptive_k::<NAME>
function(adaptive_k_add_compiled NAME TYPE)
  set(target adaptive_k_${NAME})
  add_library(${target} ${TYPE} ${ARGN})
  add_library(adaptive_k::${NAME} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${NAME} LINKER_LANGUAGE CXX
    POSITION_INDEPENDENT_CODE ON CXX_VISIBILITY_PRESET hidden VISIBILITY_INLINES_HIDDEN ON)
  # In a subdirectory only for those who link it, or install all.
  if(NOT ADAPTIVE_K_IS_TOP_LEVEL AND NOT ADAPTIVE_K_INSTALL)
    set_target_properties(${target} PROPERTIES EXCLUDE_FROM_ALL ON)
  endif()
endfunction()

# Makes TARGET libadaptive_k, which shows its users the C interface and nothing else: the standard
# library's templates, which are visible whatever the compiler is told, stay inside.
function(adaptive_k_export_c_symbols_alone TARGET)
  set(interface "${adaptive_k_VERSION_MAJOR}.${adaptive_k_VERSION_MINOR}")  # before 1.0, minor versions differ
  set_target_properties(${TARGET} PROPERTIES OUTPUT_NAME adaptive_k
    VERSION ${adaptive_k_VERSION} SOVERSION ${interface})
  if(APPLE)
    target_link_options(${TARGET} PRIVATE "LINKER:-exported_symbol,_adaptive_k_*")
  elseif(UNIX)
    set(script "${PROJECT_SOURCE_DIR}/kernels/exports.map")
    target_link_options(${TARGET} PRIVATE "LINKER:--version-script=${script}")
    set_property(TARGET ${TARGET} APPEND PROPERTY LINK_DEPENDS "${script}")
  endif()
endfunction()
