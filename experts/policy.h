#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "absl/time/time.h"
#include "experts/expert_provider.h"
#include "experts/hints.h"
#include "experts/link_model.h"
#include "runtime/base/ids.h"

namespace portolan {

// What a policy decides about: the experts that one rank owns and its slots.
struct PolicyShape {
  int32_t num_layers = 0;   // MoE layers
  int32_t num_experts = 0;  // routed experts of a layer, on all ranks
  int32_t top_k = 0;
  int32_t num_slots = 0;
  int64_t expert_bytes = 0;          // what one load moves
  std::vector<ExpertId> owned = {};  // rising

  size_t num_ids() const {
    return static_cast<size_t>(num_layers) * static_cast<size_t>(num_experts);
  }
  // Position of an expert in tables over all layers and experts.
  size_t Index(ExpertId id) const {
    return static_cast<size_t>(id.layer) * static_cast<size_t>(num_experts) +
           static_cast<size_t>(id.expert);
  }
};

// Where an expert is. A demand that meets a speculative read takes it over.
enum class Residence : uint8_t {
  kAbsent,
  kReading,
  kResident,
  kUnreadable,  // absent, and a read of it has failed: only demand tries again,
                // which says what is wrong
};

// How a layer found an expert that it needs: resident and complete, on its
// way, or neither.
enum class AccessKind : uint8_t { kHit, kLate, kMiss };

// The link as it stands; both figures are measured by who loads.
struct LinkState {
  double bytes_per_second = 0;
  absl::Duration latency = absl::ZeroDuration();  // of each load
  // What demand waits for at most, since it overtakes between chunks; 0: a
  // load.
  int64_t chunk_bytes = 0;

  absl::Duration LoadTime(int64_t bytes) const {
    if (bytes_per_second <= 0) return latency;
    return latency +
           absl::Seconds(static_cast<double>(bytes) / bytes_per_second);
  }
};

// What a policy sees when it is asked for a speculative read.
struct PrefetchContext {
  absl::Time now = absl::InfinitePast();
  LinkState link = {};
  std::span<const Residence> residence = {};  // by PolicyShape::Index()
  // Experts whose slot may be taken: resident, not leased, not needed by the
  // layer in work, not a prefetch whose layer is still ahead.
  std::span<const ExpertId> evictable = {};
  bool has_free_slot = false;
};

// A speculative read and, if no slot is free, the resident to give up for it.
struct Prefetch {
  ExpertId id;
  std::optional<ExpertId> victim = std::nullopt;
};

// Decides, for the experts and slots of one rank, whom to evict and what to
// read ahead. Events in, decisions out: no clock, thread, file or random
// device; equal events give equal decisions. It never changes what is computed,
// only when.
//
// Driven through PolicyDriver, which holds the budget rules and the metrics.
// Thread-compatible. Times never go back. After construction nothing allocates.
// Source: contracts.md section 4 binds the rules, each policy names its own.
class CachePolicy {
 public:
  virtual ~CachePolicy() = default;

  // The name that --policy takes.
  virtual std::string_view name() const = 0;

  // How hints of several ranks become one score.
  virtual HintMerge hint_merge() const { return HintMerge::kSum; }

  // One sentence if the policy works in a reduced form under this shape (a
  // per-layer policy with fewer slots than its layers need), else empty.
  virtual std::string_view notice() const { return {}; }

  // A step of `num_tokens` tokens, of all ranks, begins.
  virtual void OnBeginStep(int64_t /*num_tokens*/, absl::Time /*now*/) {}

  // Merged hints for a layer that is still ahead in this step: a score for
  // each expert of the layer, those of other ranks included and ignored.
  virtual void OnHints(int32_t /*layer*/, int32_t /*distance*/,
                       std::span<const float> /*scores*/, absl::Time /*now*/) {}

  // The gate has chosen; `needs` is the whole union of the step for the layer,
  // unless its rows come in several rounds: then that of the first.
  virtual void OnBeginLayer(int32_t /*layer*/,
                            std::span<const ExpertNeed> /*needs*/,
                            absl::Time /*now*/) {}

  // A further round of the layer in work needs these, some of them perhaps as
  // earlier ones did.
  virtual void OnMoreNeeds(int32_t /*layer*/,
                           std::span<const ExpertNeed> /*needs*/,
                           absl::Time /*now*/) {}

  // One of the needs and how it was found, once for a layer. Follows
  // OnBeginLayer() or OnMoreNeeds() at once.
  virtual void OnAccess(ExpertId /*id*/, AccessKind /*kind*/,
                        int32_t /*num_rows*/, absl::Time /*now*/) {}

  // The weights are complete in a slot.
  virtual void OnLoaded(ExpertId /*id*/, ReadClass /*read_class*/,
                        absl::Time /*now*/) {}

  // The read of the weights has failed; its slot is empty.
  virtual void OnLoadFailed(ExpertId /*id*/) {}

  // The slot is empty or belongs to another expert now.
  virtual void OnEvicted(ExpertId /*id*/, absl::Time /*now*/) {}

  // The layer is computed; `stall` of its time went into waiting for experts.
  virtual void OnEndLayer(int32_t /*layer*/, absl::Duration /*stall*/,
                          absl::Time /*now*/) {}

  // The expert to give up for a demand read of `incoming`: an index into
  // `evictable`, which is not empty.
  virtual size_t ChooseVictim(std::span<const ExpertId> evictable,
                              ExpertId incoming, absl::Time now) = 0;

  // The next speculative read, of an absent expert owned by this rank, or
  // nullopt if none is worth its cost now. Asked only when the read could start
  // at once, so that nothing waits that one could wish to recall.
  virtual std::optional<Prefetch> NextPrefetch(
      const PrefetchContext& /*context*/) {
    return std::nullopt;
  }
};

}  // namespace portolan
