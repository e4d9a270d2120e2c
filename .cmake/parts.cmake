# The optional parts of the library and what each of them needs. Part of the installed package too,
# whose users' machines must be searched anew.

set(ADAPTIVE_K_OPTIONAL_PARTS calibration observability ab_test)
set(ADAPTIVE_K_calibration_NEEDS "nlohmann_json")
set(ADAPTIVE_K_observability_NEEDS "Boost's headers and threads")
set(ADAPTIVE_K_ab_test_NEEDS "Boost's headers")

# adaptive_k_find_part(PART SEARCH): makes adaptive_k::<PART>_needs, what the part links, where that
# is there. Without SEARCH only targets that the caller found earlier count, and nothing is looked
# for. Targets of others are used as they are: never promoted, never changed. A function, so that
# what the search sets stays in here.
function(adaptive_k_find_part PART SEARCH)
  if(TARGET adaptive_k::${PART}_needs)
    return()
  endif()
  set(needs "")
  if(PART STREQUAL "calibration")
    if(SEARCH AND NOT TARGET nlohmann_json::nlohmann_json)
      find_package(nlohmann_json 3.9 QUIET)
    endif()
    set(needs nlohmann_json::nlohmann_json)
  else()
    if(SEARCH AND NOT TARGET Boost::headers)
      find_package(Boost 1.70 QUIET)  # headers alone
    endif()
    set(needs Boost::headers)
  endif()
  if(PART STREQUAL "observability")
    list(APPEND needs Threads::Threads)
    if(TARGET Boost::headers AND NOT TARGET Threads::Threads)
      find_package(Threads QUIET)
    endif()
  endif()
  foreach(target IN LISTS needs)
    if(NOT TARGET ${target})
      return()
    endif()
  endforeach()
  add_library(adaptive_k::${PART}_needs INTERFACE IMPORTED)
  target_link_libraries(adaptive_k::${PART}_needs INTERFACE ${needs})
endfunction()
