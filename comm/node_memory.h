#pragma once

#include <mpi.h>

#include <cstddef>
#include <memory>
#include <vector>

#include "absl/status/statusor.h"
#include "comm/heartbeat.h"

namespace portolan {

// Memory that the ranks of a host share: of each a LifeCell and its inbox. It
// is there for certain: a host that is short of it is told at the start, where
// memory that is only promised would end a rank by a signal later.
class NodeMemory {
 public:
  // Collective over the ranks of the host, with one outcome for all of them.
  // Errors: kResourceExhausted naming the bytes and the remedy.
  static absl::StatusOr<std::unique_ptr<NodeMemory>> Create(MPI_Comm node,
                                                            size_t inbox_bytes);
  ~NodeMemory();
  NodeMemory(const NodeMemory&) = delete;
  NodeMemory& operator=(const NodeMemory&) = delete;

  LifeCell& cell(size_t local_rank) const {
    return *reinterpret_cast<LifeCell*>(data_ + local_rank * part_bytes_);
  }
  std::vector<std::byte*> Inboxes() const;

 private:
  NodeMemory(std::byte* data, size_t part_bytes, size_t num_parts)
      : data_(data), part_bytes_(part_bytes), num_parts_(num_parts) {}

  std::byte* const data_;
  const size_t part_bytes_;
  const size_t num_parts_;
};

}  // namespace portolan
