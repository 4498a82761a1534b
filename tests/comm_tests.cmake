add_library(exchange_contract STATIC exchange_contract.cc)
target_link_libraries(exchange_contract PUBLIC portolan::comm
  PRIVATE portolan_warnings)
portolan_test(comm_token_exchange_test portolan::comm exchange_contract)
