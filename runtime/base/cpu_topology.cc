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

// Owns an hwloc bitmap.
class Bitmap {
 public:
  Bitmap() : bits_(hwloc_bitmap_alloc()) {}
  ~Bitmap() { hwloc_bitmap_free(bits_); }
  Bitmap(const Bitmap&) = delete;
  Bitmap& operator=(const Bitmap&) = delete;

  hwloc_bitmap_t get() const { return bits_; }

 private:
  hwloc_bitmap_t bits_;
};

}  // namespace

std::vector<int> AllowedCpus() {
  std::vector<int> cpus;
  const Topology topology;
  if (topology.get() == nullptr) return cpus;
  const Bitmap bound;
  if (hwloc_get_cpubind(topology.get(), bound.get(), HWLOC_CPUBIND_PROCESS) !=
      0) {
    hwloc_bitmap_copy(bound.get(),
                      hwloc_topology_get_allowed_cpuset(topology.get()));
  }
  // hwloc's logical order keeps neighbours together.
  const int units = hwloc_get_nbobjs_by_type(topology.get(), HWLOC_OBJ_PU);
  for (int i = 0; i < units; ++i) {
    const unsigned cpu = hwloc_get_obj_by_type(topology.get(), HWLOC_OBJ_PU,
                                               static_cast<unsigned>(i))
                             ->os_index;
    if (hwloc_bitmap_isset(bound.get(), cpu)) {
      cpus.push_back(static_cast<int>(cpu));
    }
  }
  return cpus;
}

std::vector<int> NumaNodesOf(const std::vector<int>& cpus) {
  std::vector<int> nodes;
  const Topology topology;
  if (topology.get() == nullptr) return nodes;
  const int count =
      hwloc_get_nbobjs_by_type(topology.get(), HWLOC_OBJ_NUMANODE);
  for (int i = 0; i < count; ++i) {
    const hwloc_obj_t node = hwloc_get_obj_by_type(
        topology.get(), HWLOC_OBJ_NUMANODE, static_cast<unsigned>(i));
    const bool ours = std::any_of(cpus.begin(), cpus.end(), [&](int cpu) {
      return hwloc_bitmap_isset(node->cpuset, static_cast<unsigned>(cpu)) != 0;
    });
    if (ours) nodes.push_back(static_cast<int>(node->os_index));
  }
  std::sort(nodes.begin(), nodes.end());
  return nodes;
}

void PlaceMemory(std::span<std::byte> memory, const std::vector<int>& nodes) {
  if (memory.empty() || nodes.empty()) return;
  const Topology topology;
  // Where there is but one node there is nothing to choose.
  if (topology.get() == nullptr ||
      hwloc_get_nbobjs_by_type(topology.get(), HWLOC_OBJ_NUMANODE) < 2) {
    return;
  }
  const Bitmap set;
  for (const int node : nodes) {
    hwloc_bitmap_set(set.get(), static_cast<unsigned>(node));
  }
  // Not strict: a full node gives way to another instead of failing.
  const auto policy =
      nodes.size() == 1 ? HWLOC_MEMBIND_BIND : HWLOC_MEMBIND_INTERLEAVE;
  hwloc_set_area_membind(topology.get(), memory.data(), memory.size(),
                         set.get(), policy, HWLOC_MEMBIND_BYNODESET);
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

std::vector<int> MemoryNodes(const ThreadPlan& plan,
                             const std::vector<int>& allowed_cpus) {
  return NumaNodesOf(plan.cpus.empty() ? allowed_cpus : plan.cpus);
}

}  // namespace portolan
