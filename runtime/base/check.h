#pragma once

#include <cstdio>
#include <cstdlib>

// Ends the process if a promise of our own code is broken: a bug, never bad
// input and never a failed peer, which are absl::Status.
#define PORTOLAN_CHECK(condition)                                          \
  do {                                                                     \
    if (!(condition)) {                                                    \
      std::fprintf(stderr, "%s:%d: PORTOLAN_CHECK(%s) failed\n", __FILE__, \
                   __LINE__, #condition);                                  \
      std::abort();                                                        \
    }                                                                      \
  } while (false)
