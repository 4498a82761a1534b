#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "experts/link_model.h"
#include "experts/policy_driver.h"

namespace portolan {

// The expert cache and the link of one rank, as the engine has them but in
// simulated time: reads are events, computing is a duration. Makes the same
// calls to PolicyDriver as the real cache does. Thread-compatible.
class SimulatedCache {
 public:
  // A load goes over the link in chunks of `chunk_bytes`.
  SimulatedCache(const PolicyShape& shape, std::unique_ptr<CachePolicy> policy,
                 const LinkSpec& link, int64_t chunk_bytes);

  PolicyDriver& driver() { return driver_; }
  const PolicyDriver& driver() const { return driver_; }
  ExpertMetrics metrics() const;
  absl::Time now() const { return now_; }
  // That have come over the link whole.
  int64_t loads() const { return loads_; }

  // Begins with every owned expert resident, which counts as no demand.
  // Requires as many slots, and nothing loaded.
  void LoadAll();

  // Lets time pass: reads arrive, the idle link takes speculative ones.
  void AdvanceTo(absl::Time time);

  // Computes a layer whose gate has chosen at now(): resident experts first,
  // the others as they come, in waves if need be. Each row takes `row_time`.
  // Afterwards now() is the end of the layer. Returns the time of waiting.
  absl::Duration Compute(int32_t layer, std::span<const ExpertNeed> needs,
                         absl::Duration row_time);

 private:
  enum class Phase : uint8_t { kIdle, kPending, kComputing };

  // Takes the next chunk off the link if it arrives by `limit`; now() is then
  // its arrival.
  bool ArriveNext(absl::Time limit);
  void Arrive(uint64_t tag);
  // Starts reads: of what the layer in work waits for, and once all of that is
  // on its way, of what the policy wants to read ahead.
  void StartReads();
  void StartLoad(ExpertId id, ReadClass read_class);
  void Evict(ExpertId id);
  // Starts reads for needs that are absent, as far as slots can be had and the
  // link can take them soon: a slot claimed early is one that nothing uses.
  // Whether none is left then.
  bool StartDemand();
  void SetDemanded(ExpertId id);
  Phase& phase(const ExpertNeed& need);
  std::span<const ExpertId> Evictable();
  LinkState link_state() const;

  // Demand reads under way: one on the link and one to follow at once.
  static constexpr int32_t kDemandAhead = 2;

  const PolicyShape shape_;
  const LinkSpec spec_;
  const int64_t chunk_bytes_;
  PolicyDriver driver_;
  LinkModel link_;
  absl::Time now_ = absl::UnixEpoch();
  int32_t layer_ = 0;                  // in work
  std::span<const ExpertNeed> needs_;  // of it; empty between layers
  std::vector<Phase> phase_;           // of the needs, by Index()
  std::vector<int64_t> chunks_left_;   // of a load, by Index()
  std::vector<bool> demanded_;         // its load is demand's, by Index()
  int32_t num_demanded_ = 0;           // of these under way
  std::vector<ExpertId> residents_;    // complete ones
  std::vector<ExpertId> evictable_;    // scratch
  int32_t used_slots_ = 0;
  int64_t start_bytes_ = 0;  // of LoadAll()
  int64_t chunks_on_link_ = 0;
  int64_t loads_ = 0;
};

}  // namespace portolan
