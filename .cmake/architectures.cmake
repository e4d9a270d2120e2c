# adaptive_k_uncovered_architectures(BUILT WANTED OUT): those of WANTED, a list as in CMAKE_CUDA_ARCHITECTURES, on whose
# devices no kernel of BUILT, another, runs. Machine code runs on its own major number from its minor one on, PTX on everything
# from its number on.
function(adaptive_k_uncovered_architectures BUILT WANTED OUT)
  set(uncovered "")
  foreach(wanted IN LISTS WANTED)
    if(NOT wanted MATCHES "^([0-9]+)")  # native, all, OFF
      continue()
    endif()
    set(device ${CMAKE_MATCH_1})
    set(covered OFF)
    foreach(built IN LISTS BUILT)
      if(NOT built MATCHES "^([0-9]+)([af]?)(-real|-virtual)?$")
        set(covered ON)  # native, all: who knows
        continue()
      endif()
      set(number ${CMAKE_MATCH_1})
      set(special "${CMAKE_MATCH_2}")  # 90a: for sm_90 and nothing else
      set(kind "${CMAKE_MATCH_3}")
      math(EXPR majors "${device} / 10 - ${number} / 10")
      if(special)
        if(device EQUAL number)
          set(covered ON)
        endif()
      elseif(number LESS_EQUAL device AND (majors EQUAL 0 OR NOT kind STREQUAL "-real"))
        set(covered ON)
      endif()
    endforeach()
    if(NOT covered)
      list(APPEND uncovered ${device})
    endif()
  endforeach()
  set(${OUT} "${uncovered}" PARENT_SCOPE)
endfunction()
