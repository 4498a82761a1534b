add_library(portolan_warnings INTERFACE)
target_compile_options(portolan_warnings INTERFACE
  -Wall -Wextra -Wshadow -Wconversion -Wno-sign-conversion -Wnon-virtual-dtor
  $<$<CXX_COMPILER_ID:Clang>:-Wthread-safety>
  # A loop that is not unrolled without optimisation is no fault.
  $<$<CXX_COMPILER_ID:Clang>:-Wno-pass-failed>
  $<$<BOOL:${PORTOLAN_WERROR}>:-Werror>)

# portolan_library(<name> HEADERS ... SOURCES ... PUBLIC ... PRIVATE ...)
#
# One folder, one library, but for programs that link less than their neighbours.
# A portolan:: dependency must exist already, so the order of add_subdirectory()
# in the root is the order of the layers and a cycle cannot be written. The test layering.<name> checks the #includes
# against the same list.
function(portolan_library name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "HEADERS;SOURCES;PUBLIC;PRIVATE")
  set(visible "${CMAKE_CURRENT_SOURCE_DIR}")
  foreach(dep IN LISTS arg_PUBLIC arg_PRIVATE)
    if(NOT TARGET ${dep})
      message(FATAL_ERROR
        "portolan::${name} needs ${dep}, which is in no lower layer")
    endif()
    if(dep MATCHES "^portolan::")
      get_target_property(dep_dir ${dep} SOURCE_DIR)
      list(APPEND visible "${dep_dir}")
    endif()
  endforeach()

  add_library(portolan_${name} STATIC)
  add_library(portolan::${name} ALIAS portolan_${name})
  target_sources(portolan_${name}
    PRIVATE ${arg_SOURCES}
    PUBLIC FILE_SET HEADERS BASE_DIRS ${PROJECT_SOURCE_DIR} FILES ${arg_HEADERS})
  target_link_libraries(portolan_${name}
    PUBLIC ${arg_PUBLIC} PRIVATE ${arg_PRIVATE} portolan_warnings)

  if(NOT TARGET libraries)
    add_custom_target(libraries)  # all of them, for a look by another compiler
  endif()
  add_dependencies(libraries portolan_${name})

  list(JOIN visible "|" visible)
  list(TRANSFORM arg_HEADERS PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/
    OUTPUT_VARIABLE headers)
  list(TRANSFORM arg_SOURCES PREPEND ${CMAKE_CURRENT_SOURCE_DIR}/
    OUTPUT_VARIABLE sources)
  list(JOIN headers "|" headers)
  list(JOIN sources "|" sources)
  add_test(NAME layering.${name} COMMAND ${CMAKE_COMMAND}
    -D FILES=${headers}|${sources} -D VISIBLE=${visible}
    -D ROOT=${PROJECT_SOURCE_DIR}
    -P ${PROJECT_SOURCE_DIR}/tests/check_layering.cmake)
endfunction()
