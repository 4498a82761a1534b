#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "absl/status/status.h"
#include "experts/link_model.h"
#include "runtime/base/ids.h"

namespace portolan {

// Which chunk of which load to read next. Demand loads go in the order of their
// arrival; a speculative load goes on only while no demand chunk is waiting or
// under way, so that demand overtakes it between two chunks.
//
// A load belongs to a slot, at most one to each. A load that fails is read
// again from its start, if it is demanded, its error may pass (kUnavailable)
// and it has attempts left. Pure, no thread: call it under the cache's lock.
class LoadQueue {
 public:
  struct Limits {
    int32_t num_slots = 0;
    int32_t num_staging = 0;  // buffers; 0: loads land in their slot
    int32_t depth = 1;        // chunks under way
    int32_t speculative_depth = 1;
    int32_t max_attempts = 3;  // of a demand load
  };

  struct Chunk {
    int32_t slot = 0;
    int32_t chunk = 0;
    ExpertId id;
    ReadClass read_class = ReadClass::kDemand;
    int32_t staging = -1;  // buffer of the load, -1: the slot itself
  };

  enum class Outcome : uint8_t {
    kUnderWay,  // more chunks to come, the repetition of a failed load included
    kLanded,    // complete; the load ends with Remove()
    kFailed,    // final; the load is removed
  };

  explicit LoadQueue(const Limits& limits);

  // Queues the load of an expert into a slot without one.
  void Add(int32_t slot, ExpertId id, ReadClass read_class, int32_t num_chunks);

  // Makes a speculative load a demand load, ahead of those that wait; false if
  // it was one.
  bool Promote(int32_t slot);

  // The next chunk to submit, from now on under way; nullopt if none may go.
  std::optional<Chunk> Next();

  // A chunk of the slot's load is done. After kFailed, `status` is the error.
  Outcome OnChunkDone(int32_t slot, absl::Status& status);

  // Ends a landed load.
  void Remove(int32_t slot);

  // Whether the first chunk of a new speculative load could go at once.
  bool CanSpeculate() const;

  ReadClass read_class(int32_t slot) const { return load(slot).read_class; }
  int32_t staging(int32_t slot) const { return load(slot).staging; }
  int32_t under_way() const { return demand_under_way_ + spec_under_way_; }
  int32_t num_loads() const { return num_loads_; }
  int32_t num_speculative() const { return num_speculative_; }
  int64_t num_retries() const { return num_retries_; }

 private:
  struct Load {
    bool active = false;
    ExpertId id;
    ReadClass read_class = ReadClass::kDemand;
    int32_t num_chunks = 0;
    int32_t next_chunk = 0;
    int32_t num_done = 0;
    int32_t under_way = 0;
    int32_t attempts = 1;
    int32_t staging = -1;
    absl::Status status;
  };

  const Load& load(int32_t slot) const {
    return loads_[static_cast<size_t>(slot)];
  }
  Load& load(int32_t slot) { return loads_[static_cast<size_t>(slot)]; }

  // Chunks under way of a class.
  int32_t& UnderWay(ReadClass read_class) {
    return read_class == ReadClass::kDemand ? demand_under_way_
                                            : spec_under_way_;
  }
  // The first of `queue` that can go, removed from it with its last chunk.
  std::optional<Chunk> NextOf(std::vector<int32_t>& queue);
  bool HaveStaging(Load& load);
  Outcome EndAttempt(int32_t slot, absl::Status& status);
  void Dequeue(int32_t slot);

  const Limits limits_;
  std::vector<Load> loads_;  // by slot
  // Slots with chunks to submit, the next one first. Short, and with room for
  // all slots, so that a step allocates nothing.
  std::vector<int32_t> demand_;
  std::vector<int32_t> speculative_;
  std::vector<int32_t> free_staging_;
  int32_t demand_under_way_ = 0;
  int32_t spec_under_way_ = 0;
  int32_t num_loads_ = 0;
  int32_t num_speculative_ = 0;  // of these
  int64_t num_retries_ = 0;
};

}  // namespace portolan
