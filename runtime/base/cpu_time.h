#pragma once

#include <time.h>

namespace portolan {

// CPU time that the calling thread has taken so far, in microseconds: what work
// costs however busy the machine is.
inline double ThreadCpuMicroseconds() {
  timespec now{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) * 1e6 +
         static_cast<double>(now.tv_nsec) * 1e-3;
}

}  // namespace portolan
