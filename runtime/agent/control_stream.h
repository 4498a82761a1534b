#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "runtime/agent/rank_agent.h"

namespace portolan {

// How ranks reach the coordinator.
struct CoordinatorAddress {
  std::string address;  // host:port
  bool tls = false;
  std::string tls_name;  // in the server's certificate; empty: of the address
  std::string ca_pem;    // who signed the server; empty: the system's roots
  std::string cert_pem;  // this rank's own, with its key; empty: none
  std::string key_pem;
  std::string token;  // sent as "authorization: Bearer"; empty: none
};

// Which wait comes before the next attempt to reach the coordinator: twice as
// long each time, up to a limit, less a random part so that the ranks of a job
// do not come all at once. Pure.
class ReconnectDelay {
 public:
  explicit ReconnectDelay(uint64_t seed) : seed_(seed) {}
  absl::Duration Next();
  void Reset() { attempt_ = 0; }

 private:
  const uint64_t seed_;
  uint64_t draws_ = 0;
  int attempt_ = 0;
};

// Whether a stream that ended so may be opened again.
bool IsWorthRetrying(const absl::Status& status);

// Keeps the control stream of a rank open, on two threads of its own: carries
// messages between the coordinator and the agent and decides nothing else. It
// connects again whenever the stream breaks; a refusal for good fails the
// agent.
class ControlStream {
 public:
  // `agent` must outlive the stream. `notice` tells the user, on a thread of
  // the stream, that the coordinator is lost or found.
  ControlStream(const CoordinatorAddress& address, RankAgent& agent,
                uint64_t seed, std::function<void(const std::string&)> notice);
  // Ends at once.
  ~ControlStream();

  // Waits until the agent's goodbye is sent, at most `timeout`.
  void Finish(absl::Duration timeout);

 private:
  class Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace portolan
