# portolan_service_test(<name>): tests/system/<name>_test.py, by a Python that
# can import grpc.
function(portolan_service_test name)
  add_test(NAME system.${name} COMMAND ${PORTOLAN_PYTHON_WITH_GRPC}
    ${CMAKE_CURRENT_SOURCE_DIR}/system/${name}_test.py ${PROJECT_BINARY_DIR})
  set_tests_properties(system.${name} PROPERTIES LABELS system RUN_SERIAL ON
    TIMEOUT 300)
endfunction()

if(PORTOLAN_GRPC)
  portolan_test(client_backoff_test portolan::client)
  portolan_test(client_load_test portolan::client)
  portolan_test(client_transcript_test portolan::client)
endif()
if(PORTOLAN_GRPC AND PORTOLAN_PYTHON_WITH_GRPC)
  portolan_service_test(client)
  portolan_service_test(python_client)
  portolan_service_test(security)
  portolan_service_test(worker_security)
  portolan_service_test(chaos)
  portolan_service_test(overload)
  portolan_service_test(serve)
  portolan_service_test(drain)
endif()
