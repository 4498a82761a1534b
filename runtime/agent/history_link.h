#pragma once

#include <memory>
#include <string>

#include "absl/time/time.h"
#include "experts/history_mailbox.h"
#include "runtime/agent/control_stream.h"

namespace portolan {

// Carries a rank's history between its mailbox and the coordinator
// (expert_map.proto): appends what the rank learnt and follows what all ranks
// learnt. A coordinator that is away costs history, nothing else.
//
// Runs threads of its own, which sleep while there is nothing to carry.
class HistoryLink {
 public:
  struct Options {
    std::string fingerprint = {};             // of the model; names the stores
    absl::Duration retry = absl::Seconds(1);  // between attempts to connect
    absl::Duration append_timeout = absl::Seconds(10);
    size_t append_bytes = 512 << 10;  // of one call
  };

  // Begins at once. `mailbox` must outlive the link, which closes it.
  HistoryLink(const CoordinatorAddress& address, const Options& options,
              HistoryMailbox& mailbox);
  ~HistoryLink();

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace portolan
