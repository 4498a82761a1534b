#include "runtime/base/cpu_topology.h"

#include <hwloc.h>

#include <algorithm>

#include "runtime/base/check.h"

namespace portolan {
namespace {

// Owns an hwloc topology of this machine; null where hwloc finds none.
class Topology {
 public:
  Topology() {
    if (hwloc_topology_init(&topology_) != 0) {
      topology_ = nullptr;
    } else if (hwloc_topology_load(topology_) != 0) {
      hwloc_topology_destroy(topology_);
      topology_ = nullptr;
    }
  }
  ~Topology() {
    if (topology_ != nullptr) hwloc_topology_destroy(topology_);
  }
  Topology(const Topology&) = delete;
  Topology& operator=(const Topology&) = delete;

  hwloc_topology_t get() const { return topology_; }

 private:
  hwloc_topology_t topology_ = nullptr;
};

// The n-th CPU (from 0) of every core, as far as `bound` contains it.
void AppendNthOfEveryCore(hwloc_topology_t topology, hwloc_const_bitmap_t bound,
                          unsigned n, std::vector<int>& cpus) {
  const int cores = hwloc_get_nbobjs_by_type(topology, HWLOC_OBJ_CORE);
  for (int core = 0; core < cores; ++core) {
    const hwloc_obj_t object = hwloc_get_obj_by_type(
        topology, HWLOC_OBJ_CORE, static_cast<unsigned>(core));
    int cpu = hwloc_bitmap_first(object->cpuset);
    for (unsigned i = 0; i < n && cpu >= 0; ++i) {
      cpu = hwloc_bitmap_next(object->cpuset, cpu);
    }
    if (cpu >= 0 && hwloc_bitmap_isset(bound, static_cast<unsigned>(cpu))) {
      cpus.push_back(cpu);
    }
  }
}

}  // namespace

std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  const Topology topology;
  if (topology.get() == nullptr) return cpus;
  hwloc_bitmap_t bound = hwloc_bitmap_alloc();
  if (hwloc_get_cpubind(topology.get(), bound, HWLOC_CPUBIND_PROCESS) != 0) {
    hwloc_bitmap_copy(bound, hwloc_topology_get_allowed_cpuset(topology.get()));
  }
  constexpr unsigned kMaxSiblings = 8;
  for (unsigned n = 0; n < kMaxSiblings; ++n) {
    AppendNthOfEveryCore(topology.get(), bound, n, cpus);
  }
  hwloc_bitmap_free(bound);
  return cpus;
}

std::string CpuModelName() {
  const Topology topology;
  if (topology.get() == nullptr) return "unknown";
  const hwloc_obj_t root = hwloc_get_root_obj(topology.get());
  const hwloc_obj_t package =
      hwloc_get_obj_by_type(topology.get(), HWLOC_OBJ_PACKAGE, 0);
  for (const hwloc_obj_t object : {package, root}) {
    if (object == nullptr) continue;
    if (const char* name = hwloc_obj_get_info_by_name(object, "CPUModel")) {
      return name;
    }
  }
  return "unknown";
}

ThreadPlan PlanThreads(const std::vector<int>& allowed_cpus, int requested,
                       int local_rank, int local_size) {
  PORTOLAN_CHECK(local_rank >= 0 && local_rank < local_size);
  const int cpus = std::max(1, static_cast<int>(allowed_cpus.size()));
  ThreadPlan plan;
  plan.num_threads = requested > 0 ? requested : std::max(1, cpus / local_size);
  if (plan.num_threads * local_size == static_cast<int>(allowed_cpus.size())) {
    const auto first = allowed_cpus.begin() + local_rank * plan.num_threads;
    plan.cpus.assign(first, first + plan.num_threads);
  }
  return plan;
}

}  // namespace portolan
