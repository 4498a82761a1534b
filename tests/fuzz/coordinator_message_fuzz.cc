// What a coordinator may send to a rank, from anywhere: the control stream's
// messages in any order, among the steps of an engine; and updates of the
// shared expert maps. The rank stays whole: its offsets fit, nothing is counted
// twice, no number of it runs away.
//
// The input is a list of {kind, length (2 bytes), bytes}; the kind says whether
// the bytes are a message or what happens meanwhile.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "experts/history_record.h"
#include "proto/expert_map.pb.h"
#include "runtime/agent/agent_protocol.h"
#include "runtime/agent/wire.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr RecordShape kShape = {
    .num_layers = 2, .num_experts = 4, .top_k = 2, .hidden = 3};

// An engine that gives every request a token when it is asked to.
class Rank {
 public:
  Rank() : agent_({.job = "job", .capacity = Capacity()}) {}

  void Connect() {
    const v1::RankMessage message = agent_.Connect(now_);
    PORTOLAN_CHECK(message.has_register_());
    for (const v1::RunningRequest& running : message.register_().running()) {
      PORTOLAN_CHECK(running.held_from() <= running.next_offset());
    }
  }
  void Receive(const v1::CoordinatorMessage& message) {
    if (!agent_.Receive(message, now_).ok()) {
      agent_.Disconnect();
      Connect();
    }
    Check();
  }
  void Step() {
    const AgentProtocol::EngineWork work = agent_.TakeEngineWork(now_);
    for (const int64_t id : work.cancel) running_.erase(id);
    for (const int64_t id : work.overdue) {
      if (running_[id] > 0) {
        agent_.Started(id);
      } else {
        agent_.EndUnstarted(id);
        running_.erase(id);
      }
    }
    for (const AgentProtocol::Assignment& assignment : work.assign) {
      FromAssign(assignment.request);
      running_[assignment.id] = 0;
    }
    if (!agent_.paused()) {
      for (auto& [id, tokens] : running_) {
        agent_.TakeToken(id, ++tokens, "t", nullptr);
      }
    }
    agent_.SetRoom({.sequences = 4, .kv_tokens = 100});
    Check();
  }
  void EndAll() {
    for (const auto& [id, tokens] : std::exchange(running_, {})) {
      v1::Finish finish;
      finish.set_reason(v1::FINISH_REASON_STOP);
      agent_.TakeEnd(id, finish);
    }
    Check();
  }
  void Pass(absl::Duration time) { now_ += time; }
  void Drain() { agent_.Drain(); }
  void ReleaseAll() {
    agent_.ReleaseAll();
    Check();
  }

 private:
  static v1::Capacity Capacity() {
    v1::Capacity capacity;
    capacity.set_max_sequences(4);
    return capacity;
  }

  void Check() {
    // More than it could ever have to say at a time would be a loop.
    for (int i = 0; auto message = agent_.NextMessage(now_); ++i) {
      PORTOLAN_CHECK(i < 100'000);
      PORTOLAN_CHECK(message->kind_case() != v1::RankMessage::KIND_NOT_SET);
      for (const v1::TokenDelta& delta : message->tokens().deltas()) {
        PORTOLAN_CHECK(delta.token_ids_size() == delta.texts_size());
        PORTOLAN_CHECK(delta.token_ids_size() > 0 || delta.has_finish());
        PORTOLAN_CHECK(delta.token_ids_size() <= 2048);
      }
    }
    PORTOLAN_CHECK(agent_.num_held_tokens() >= 0);
    PORTOLAN_CHECK(agent_.num_requests() > 0 || agent_.num_held_tokens() == 0);
  }

  absl::Time now_ = absl::FromUnixSeconds(1000);
  AgentProtocol agent_;
  std::map<int64_t, int32_t> running_;
};

void TakeUpdate(std::span<const uint8_t> bytes) {
  v1::ExpertMapUpdate update;
  if (!update.ParseFromArray(bytes.data(), static_cast<int>(bytes.size()))) {
    return;
  }
  for (const v1::ExpertMapRow& row : update.added()) {
    const auto sequence = DecodeSequence(kShape, row.key(), row.map());
    if (sequence.ok()) {
      PORTOLAN_CHECK(sequence->context.size() == 3 &&
                     sequence->map.size() == 8);
      PORTOLAN_CHECK(sequence->experts.size() ==
                     sequence->tokens.size() * 2 * 2);
      for (const int32_t expert : sequence->experts) {
        PORTOLAN_CHECK(expert >= 0 && expert < 4);
      }
    }
    const auto iteration = DecodeIteration(kShape, row.key(), row.map());
    if (iteration.ok()) PORTOLAN_CHECK(iteration->map.size() == 8);
  }
}

void Do(uint8_t kind, std::span<const uint8_t> bytes, Rank& rank) {
  v1::CoordinatorMessage message;
  switch (kind % 10) {
    case 0:
    case 1:
      if (message.ParseFromArray(bytes.data(),
                                 static_cast<int>(bytes.size()))) {
        rank.Receive(message);
      }
      return;
    case 2:
    case 3:
      return rank.Step();
    case 4:
      return rank.Pass(absl::Milliseconds(bytes.size() * 10));
    case 5:
      return rank.EndAll();
    case 6:
      return rank.Connect();
    case 7:
      return rank.Drain();
    case 8:
      return rank.ReleaseAll();
    default:
      return TakeUpdate(bytes);
  }
}

}  // namespace
}  // namespace portolan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  std::span<const uint8_t> rest(data, size);
  Rank rank;
  rank.Connect();
  for (int i = 0; rest.size() >= 3 && i < 1000; ++i) {
    const uint8_t kind = rest[0];
    const size_t length = rest[1] | size_t{rest[2]} << 8;
    rest = rest.subspan(3);
    const auto bytes = rest.first(std::min(length, rest.size()));
    rest = rest.subspan(bytes.size());
    Do(kind, bytes, rank);
  }
  return 0;
}
