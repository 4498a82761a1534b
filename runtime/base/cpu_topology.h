#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace portolan {

// The logical CPUs that this process may use, NUMA node by NUMA node and core
// by core, so that any contiguous share of them lies as close together as it
// can. Source: hwloc, honouring cgroups and bindings of the launcher, or
// HWLOC_SYNTHETIC. Empty if the machine does not tell.
std::vector<int> AllowedCpus();

// The NUMA nodes (as the system numbers them) of these CPUs, rising; empty if
// the machine does not tell or `cpus` is empty.
std::vector<int> NumaNodesOf(const std::vector<int>& cpus);

// Asks for pages of `memory`, which nobody has touched yet, from these NUMA
// nodes: from the one of a rank that has all its CPUs there, in turns from
// several. Without nodes, and where the system refuses, pages come from where
// they are first touched: that costs speed, not results.
void PlaceMemory(std::span<std::byte> memory, const std::vector<int>& nodes);

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

// The NUMA nodes for a rank's memory: those of its threads' CPUs. Threads that
// are not bound wander over all allowed CPUs, and memory spread over the nodes
// of these serves them best.
std::vector<int> MemoryNodes(const ThreadPlan& plan,
                             const std::vector<int>& allowed_cpus);

}  // namespace portolan
