#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace portolan {

// The logical CPUs that this process may use: one per physical core first, then
// their siblings, each group in the machine's order. Source: hwloc, honouring
// cgroups and bindings of the launcher. Empty if the machine does not tell.
std::vector<int> AllowedCpus();

// The processor's own name, "unknown" if it has none.
std::string CpuModelName();

// What a rank's thread pool gets.
struct ThreadPlan {
  int num_threads = 1;
  std::vector<int> cpus;  // [num_threads], or empty: not bound
};

// Divides the CPUs of a node among its ranks. Policy, pure.
//
//   requested  threads per rank; 0: an even share, at least 1
//
// Threads are bound only where the ranks of the node fill the CPUs exactly: a
// job that leaves CPUs free may share the machine with others, whose bindings
// it does not know.
ThreadPlan PlanThreads(const std::vector<int>& allowed_cpus, int requested,
                       int local_rank, int local_size);

}  // namespace portolan
