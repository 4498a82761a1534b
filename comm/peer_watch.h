#pragma once

#include <optional>
#include <string>

#include "absl/status/status.h"
#include "runtime/base/ids.h"

namespace portolan {

// A peer that cannot take part any more, and how that became known.
struct LostPeer {
  Rank rank{};
  std::string how;  // "its process ended", "no sign of life for 2.1 s", ...
  // Of the error that its peers get: its own if it said why it failed.
  absl::StatusCode code = absl::StatusCode::kAborted;
};

// Knows which ranks are alive. Thread-safe.
class PeerWatch {
 public:
  virtual ~PeerWatch() = default;

  // The first peer found lost, if any. Cheap while there is none. Never waits.
  virtual std::optional<LostPeer> lost() const = 0;
};

}  // namespace portolan
