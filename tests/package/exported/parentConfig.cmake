include(CMakeFindDependencyMacro)
find_dependency(adaptive_k COMPONENTS host c_host calibration observability ab_test)
include("${CMAKE_CURRENT_LIST_DIR}/parent-engine.cmake")
