#pragma once

#include <cstddef>
#include <span>

#include "absl/status/status.h"
#include "runtime/base/ids.h"

namespace portolan {

// Where the weights of experts come from, one whole expert at a time. Thread-
// safe: experts are read concurrently. chunked_source.h has the form that the
// cache drives; LoadExpert() there blocks as this does.
class ExpertSource {
 public:
  virtual ~ExpertSource() = default;

  // Fills `slot` with the expert, ready for the kernels (expert_ffn.h), and
  // blocks for as long as that takes. After an error the slot may be half
  // written.
  // Errors: kNotFound (no such expert), kDataLoss (truncated or damaged, final)
  // or kUnavailable (may be tried again), naming file, offset and expert.
  virtual absl::Status Read(ExpertId id, std::span<std::byte> slot) = 0;
};

}  // namespace portolan
