#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/fp16.h"
#include "runtime/base/ids.h"

namespace portolan {

// owner[layer][expert]: the rank that holds the expert.
using OwnerTable = std::vector<std::vector<Rank>>;

// Cuts look-ahead hints (a score per expert) into what each owner needs, and
// keeps what the sources sent for this rank's experts. Pure bookkeeping.
//
// A set of hints speaks of one or more target layers; a target beyond the last
// layer has no values.
class HintBoard {
 public:
  // distances: of the hints that travel with a layer; step_layers: the hints of
  // a step record are for layers 0 .. step_layers - 1, from num_layers on those
  // of the step after.
  HintBoard(const OwnerTable& owner, int world_size, Rank self,
            std::vector<int32_t> distances, int step_layers);

  // The most values that one message to any rank can have.
  size_t max_values() const { return max_values_; }

  // This rank's experts of a layer, in rising order.
  std::span<const int32_t> owned_experts(int layer) const {
    return owned_[static_cast<size_t>(layer)][self_];
  }

  int32_t num_owned(int layer, size_t rank) const {
    return static_cast<int32_t>(
        owned_[static_cast<size_t>(layer)][rank].size());
  }

  // Writes the values of `hints`, [targets, num_experts], that rank `peer` owns
  // into `out` (max_values() of space) and returns their number: 0 if hints is
  // empty. layer -1: those of the step record.
  size_t Write(std::span<const Fp16> hints, int layer, size_t peer,
               std::span<Fp16> out) const;

  // Stores what `source` sent here with the header of `layer` (-1: with the
  // step record). Errors: kInternal if the number of values does not fit, to
  // follow the name of the sender.
  absl::Status Read(int layer, size_t source, std::span<const Fp16> values);

  // The stored values of `source` for target `index` (a distance's index, or a
  // layer of the step record): one per expert in owned_experts(target layer).
  std::span<const Fp16> Layer(size_t source, int index) const;
  std::span<const Fp16> Step(size_t source, int index) const;

 private:
  // What came with one kind of message.
  struct Board {
    std::vector<std::vector<Fp16>> values;  // [world]
    std::vector<size_t> begin;              // [targets + 1]
    std::span<const Fp16> At(size_t source, int index) const;
  };

  size_t num_targets(int layer) const;
  // Target layer of hints[index]; num_layers if beyond the last.
  size_t Target(int layer, size_t index) const;
  size_t Count(int layer, size_t peer) const;

  const size_t num_experts_;
  const size_t self_;
  const std::vector<int32_t> distances_;
  const size_t step_layers_;
  std::vector<std::vector<std::vector<int32_t>>> owned_;  // [layer][rank]
  size_t max_values_ = 0;
  Board layer_, step_;
};

}  // namespace portolan
