#pragma once

#include <cstdint>
#include <deque>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "proto/control.pb.h"

namespace portolan {

// Policy: a rank's side of the control stream (proto/control.proto). Events in:
// what the coordinator says, what the engine gives, time; out: the next message
// to send, and what the engine shall do. It outlives streams: requests and
// their tokens stay while there is none, and are told of at the next Connect().
//
// Tokens that the coordinator has not acknowledged are held, at most
// Accepted.max_held_tokens of them: when they are full, paused() asks the
// engine to rest. Nothing is ever dropped but what the coordinator says.
//
// Reads no clock, draws nothing. Thread-compatible.
class AgentProtocol {
 public:
  struct Options {
    std::string job;
    uint32_t rank = 0;
    uint32_t world_size = 1;
    uint64_t incarnation = 0;
    std::string host;
    v1::ModelIdentity model;
    v1::Capacity capacity;
    v1::SamplingParams defaults;
  };

  // What the engine shall do at this step border; ids are those of Assignment.
  struct Assignment {
    int64_t id = 0;
    v1::Assign request;
  };
  struct EngineWork {
    std::vector<Assignment> assign;
    std::vector<int64_t> cancel;
    // Should be in a step by now: for each, Started() or EndUnstarted().
    std::vector<int64_t> overdue;
  };

  // The engine's room, all that TakeEngineWork() gave it included.
  struct Room {
    uint32_t sequences = 0;
    uint64_t kv_tokens = 0;
    uint32_t running = 0;
    uint32_t waiting = 0;
  };

  explicit AgentProtocol(const Options& options);

  // -- The stream --

  // A stream has opened; the answer is its first message.
  v1::RankMessage Connect(absl::Time now);
  // It broke, or was never there.
  void Disconnect();
  // Errors: kInvalidArgument if the coordinator does not keep to the protocol;
  // the stream must then be closed.
  absl::Status Receive(const v1::CoordinatorMessage& message, absl::Time now);
  // What to send now, or nullopt.
  std::optional<v1::RankMessage> NextMessage(absl::Time now);
  // When NextMessage() has something without any event before.
  absl::Time next_message_due() const;
  bool attached() const { return state_ == State::kAttached; }

  // -- The engine --

  // Ends requests whose time is over, and hands out what the engine shall do.
  EngineWork TakeEngineWork(absl::Time now);
  bool HasEngineWork(absl::Time now) const;
  // Of the requests, the first; infinite if there is none.
  absl::Time next_deadline() const;
  // Whether an overdue request was in a step.
  void Started(int64_t id);
  void EndUnstarted(int64_t id);
  // Of requests that were ended meanwhile nothing is taken.
  void TakeToken(int64_t id, int32_t token, std::string text,
                 v1::TokenLogprobs* logprobs);
  void TakeEnd(int64_t id, v1::Finish finish);
  // Tokens may no longer be held: rest until it is false.
  bool paused() const;
  void SetRoom(const Room& room);
  void SetMetrics(v1::RankMetrics metrics, float coldness);

  // -- The end --

  // No new requests: those that still come are given back at once.
  void Drain();
  bool draining() const { return draining_; }
  // Gives unfinished requests back and ends them in the engine.
  void ReleaseAll();
  // Requests that ReleaseAll() gave back.
  int64_t num_released() const { return num_released_; }
  // The last message, after all others.
  void SayGoodbye(bool clean, const std::string& reason);
  // It was sent.
  bool said_goodbye() const { return goodbye_sent_; }

  // Requests whose end is not acknowledged.
  size_t num_requests() const { return entries_.size(); }
  int64_t num_held_tokens() const { return num_held_; }

 private:
  enum class State { kDetached, kRegistering, kAttached };
  struct HeldToken {
    int32_t token = 0;
    std::string text;
    std::optional<v1::TokenLogprobs> logprobs;
  };
  struct Entry {
    v1::Assign assign;  // its prompt only until the engine has it
    bool with_engine = false;
    absl::Time deadline = absl::InfiniteFuture();
    absl::Time start_by = absl::InfiniteFuture();
    uint32_t held_from = 0;
    uint32_t next_to_send = 0;
    std::deque<HeldToken> held = {};  // from held_from on
    std::optional<v1::Finish> finish = {};
    bool finish_sent = false;

    uint32_t next_offset() const {
      return held_from + static_cast<uint32_t>(held.size());
    }
    bool has_unsent() const {
      return next_to_send < next_offset() || (finish && !finish_sent);
    }
  };
  using Entries = std::map<int64_t, Entry>;

  absl::Status TakeAccepted(const v1::Accepted& accepted);
  void TakeResume(const v1::Resume& resume);
  void TakeAssign(const v1::Assign& assign, absl::Time now);
  void TakeAck(const v1::Durable& durable);
  Entries::iterator Find(const std::string& request_id, uint32_t attempt);
  void GoOnFrom(Entries::iterator entry, uint32_t offset);
  void Forget(Entries::iterator entry);
  void StopInEngine(Entries::iterator entry);
  void GiveBack(const std::string& request_id, uint32_t attempt);
  void Expire(absl::Time now, std::vector<int64_t>& overdue);
  void EndWithError(Entries::iterator entry, absl::StatusCode code,
                    const char* message);

  v1::RankMessage MakeHeartbeat(absl::Time now);
  v1::RankMessage MakeTokenBatch();
  void AppendDelta(Entry& entry, int& room, v1::TokenBatch& batch);

  const Options options_;
  State state_ = State::kDetached;
  v1::Accepted terms_;
  Entries entries_;  // by id, in the order of their coming
  std::map<std::string, int64_t> ids_;
  int64_t next_id_ = 1;
  int64_t num_held_ = 0;

  std::vector<int64_t> to_assign_;
  std::vector<int64_t> to_cancel_;
  std::set<int64_t> unsent_;
  std::vector<v1::RunningRequest> to_release_;
  int64_t num_released_ = 0;

  uint64_t received_serial_ = 0;
  uint64_t counted_serial_ = 0;  // received before the room was taken
  Room room_;
  Room told_room_;
  v1::RankMetrics metrics_;
  float coldness_ = 0;
  absl::Time beat_at_ = absl::InfinitePast();
  bool draining_ = false;
  std::optional<v1::Goodbye> goodbye_;
  bool goodbye_sent_ = false;
};

}  // namespace portolan
