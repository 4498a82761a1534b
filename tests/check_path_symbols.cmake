cmake_minimum_required(VERSION 3.24)
# Fails when an object of a path_*.cc file in OBJECTS ("|"-separated) defines a
# symbol that the linker may share with other files: the whole program would
# then run that copy, with instructions that the processor may not have.
string(REPLACE "|" ";" OBJECTS "${OBJECTS}")
set(seen 0)
set(faults "")
foreach(object IN LISTS OBJECTS)
  if(object MATCHES "/path_[a-z0-9_]+\\.cc")
    math(EXPR seen "${seen} + 1")
    execute_process(COMMAND ${NM} -C --defined-only ${object}
      OUTPUT_VARIABLE symbols COMMAND_ERROR_IS_FATAL ANY)
    string(REGEX MATCHALL "[^\n]* [WVu] [^\n]*" shared "${symbols}")
    foreach(symbol IN LISTS shared)
      string(APPEND faults "\n  ${object}: ${symbol}")
    endforeach()
  endif()
endforeach()
if(faults OR seen LESS 6)
  message(FATAL_ERROR "${seen} objects; shared symbols:${faults}")
endif()
