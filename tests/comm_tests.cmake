# What the in-process and the multi-process tests of comm share.
add_library(exchange_contract STATIC exchange_contract.cc)
target_link_libraries(exchange_contract PUBLIC portolan::comm
  PRIVATE portolan_warnings)

portolan_test(comm_agreement_test portolan::comm)
portolan_test(comm_dispatch_plan_test portolan::comm)
portolan_test(comm_exchange_bench_test portolan::comm)
portolan_test(comm_heartbeat_test portolan::comm)
portolan_test(comm_message_test portolan::comm)
portolan_test(comm_ring_test portolan::comm)
portolan_test(comm_silence_test portolan::comm)
portolan_test(comm_token_exchange_faults_test portolan::comm exchange_contract)
portolan_test(comm_token_exchange_test portolan::comm exchange_contract)

add_executable(exchange_program mp/exchange_program.cc)
target_link_libraries(exchange_program PRIVATE exchange_contract
  portolan::comm absl::strings MPI::MPI_CXX portolan_warnings)
target_compile_definitions(exchange_program PRIVATE OMPI_SKIP_MPICXX)

# portolan_mpi_test(<name> NP <n>... COMMAND <program> <argument>...): one test
# per number of ranks, started by portolan-launch. Open MPI is not built for
# ThreadSanitizer and leaks by ASan's measure.
function(portolan_mpi_test name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "NP;COMMAND")
  if(PORTOLAN_SANITIZE MATCHES "thread")
    return()
  endif()
  foreach(np IN LISTS arg_NP)
    add_test(NAME mp.${name}.np${np}
      COMMAND ${PROJECT_SOURCE_DIR}/launcher/portolan-launch -n ${np}
        -- ${arg_COMMAND})
    set_tests_properties(mp.${name}.np${np} PROPERTIES TIMEOUT 120
      ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0")
  endforeach()
endfunction()

foreach(transport mpi shm)
  portolan_mpi_test(exchange.${transport} NP 1 2 3 4
    COMMAND $<TARGET_FILE:exchange_program> ${transport} contract)
endforeach()

# One rank of three misbehaves; the others must name it.
function(portolan_fault_test transport phase action)
  if(PORTOLAN_SANITIZE MATCHES "thread")
    return()
  endif()
  string(REPLACE " " "_" name ${phase})
  set(name system.exchange_fault.${transport}.${name}.${action})
  add_test(NAME ${name}
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/exchange_fault_test.sh
      ${PROJECT_SOURCE_DIR}/launcher/portolan-launch
      $<TARGET_FILE:exchange_program> ${transport} ${phase} ${action})
  set_tests_properties(${name} PROPERTIES TIMEOUT 60 RUN_SERIAL ON
    ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0")
endfunction()

foreach(transport mpi shm)
  foreach(phase "step record" header payload compute combine)
    portolan_fault_test(${transport} ${phase} kill)
  endforeach()
  portolan_fault_test(${transport} payload torn)
  portolan_fault_test(${transport} compute stop)
  portolan_fault_test(${transport} compute fail)
  portolan_fault_test(${transport} compute busy)
  portolan_fault_test(${transport} compute halt)
  portolan_fault_test(${transport} compute late)
  portolan_fault_test(${transport} header numerics)
endforeach()
portolan_fault_test(shm header exit)
portolan_fault_test(shm header epoch)
portolan_fault_test(mpi compute slow)

# A rank that hangs as it leaves does not keep the others for ever.
if(NOT PORTOLAN_SANITIZE MATCHES "thread")
  add_test(NAME system.exchange_leave
    COMMAND ${CMAKE_CURRENT_SOURCE_DIR}/system/exchange_leave_test.sh
      ${PROJECT_SOURCE_DIR}/launcher/portolan-launch
      $<TARGET_FILE:exchange_program>)
  set_tests_properties(system.exchange_leave PROPERTIES TIMEOUT 60
    RUN_SERIAL ON ENVIRONMENT "ASAN_OPTIONS=detect_leaks=0")
endif()
