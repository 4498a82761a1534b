#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <vector>

#include "absl/time/time.h"
#include "experts/metrics.h"
#include "experts/policy.h"

namespace portolan {

// Stands between a cache (or the replay) and its policy: knows where every
// expert is, holds the rules that no policy may break, and counts the metrics,
// so that engine and replay cannot differ in either.
//
// The rules (contracts.md section 4): speculation holds at most num_slots - 2
// slots; a prefetched expert is safe until its layer has been computed once;
// the needs of the layer in work are safe from speculation. Demand may always
// take a slot.
//
// Pure, thread-compatible: call it under the cache's lock. Times never go back.
class PolicyDriver {
 public:
  // Requires shape.num_slots >= 2.
  PolicyDriver(PolicyShape shape, std::unique_ptr<CachePolicy> policy);

  const PolicyShape& shape() const { return shape_; }
  const CachePolicy& policy() const { return *policy_; }

  // As the events of CachePolicy, in the order of a step. `num_tokens`: of all
  // ranks.
  void BeginStep(int64_t num_tokens, absl::Time now);
  void OnHints(int32_t layer, int32_t distance, std::span<const float> scores,
               absl::Time now);
  // Classifies and counts every need by where its expert is at `now`; a
  // speculative read that is needed is a demand read from here on.
  void BeginLayer(int32_t layer, std::span<const ExpertNeed> needs,
                  absl::Time now);
  // A further round of the layer: counts what no round before it needed.
  void ContinueLayer(int32_t layer, std::span<const ExpertNeed> needs,
                     absl::Time now);
  // A round that is not the last has ended.
  void EndRound(absl::Duration stall);
  void EndLayer(int32_t layer, absl::Duration stall, absl::Time now);

  // What happens to slots. A read belongs to a slot from its start on: evict
  // first, then start.
  void OnLoadStarted(ExpertId id, ReadClass read_class);
  void OnLoaded(ExpertId id, absl::Time now);
  // Its slot is free; no speculative read tries again before a demand read has
  // succeeded.
  void OnLoadFailed(ExpertId id);
  void OnEvicted(ExpertId id, absl::Time now);

  // The expert to give up for a demand read of `incoming`. `evictable`:
  // resident, not leased, and no need of the layer in work that is still to be
  // computed; not empty. Prefetches whose layer is ahead are spared unless
  // there is nothing else.
  ExpertId ChooseVictim(std::span<const ExpertId> evictable, ExpertId incoming,
                        absl::Time now);

  // The next speculative read to start, if any; ask when the link could take
  // its first chunk at once, and again after each start. `evictable` as above.
  // The caller evicts the victim and starts the read, or forgets the answer.
  std::optional<Prefetch> NextPrefetch(std::span<const ExpertId> evictable,
                                       bool has_free_slot,
                                       const LinkState& link, absl::Time now);

  Residence residence(ExpertId id) const {
    return residence_[shape_.Index(id)];
  }
  // Slots that hold or await a prefetch that is not needed as yet and whose
  // layer is ahead.
  int32_t speculative_slots() const { return num_ahead_; }

  const ExpertMetrics& metrics() const { return metrics_; }

 private:
  // Why the bytes of an expert in a slot were read, for the metrics.
  enum class Origin : uint8_t { kDemand, kPrefetchUnused, kPrefetchUsed };

  struct Status {
    Origin origin = Origin::kDemand;
    bool ahead = false;   // a prefetch whose layer is still ahead
    bool needed = false;  // by the layer in work
  };

  AccessKind Classify(ExpertId id);
  void PassLayer(size_t index);
  // Copies what passes `keep` into scratch_.
  template <typename Keep>
  std::span<const ExpertId> Filter(std::span<const ExpertId> ids, Keep keep);

  const PolicyShape shape_;
  const std::unique_ptr<CachePolicy> policy_;
  std::vector<Residence> residence_;  // by Index()
  std::vector<Status> status_;        // by Index()
  std::vector<ExpertId> scratch_;
  int32_t num_ahead_ = 0;
  absl::Duration round_stall_;  // of earlier rounds of the layer
  ExpertMetrics metrics_;
};

}  // namespace portolan
