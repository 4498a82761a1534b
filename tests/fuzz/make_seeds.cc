// make_seeds CORPUS: writes the seeds of those fuzzers whose input is binary,
// with the encoders of the project, into CORPUS/<fuzzer>/. To be run again when
// a format changes; what it wrote is committed.

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>

#include "experts/history.h"
#include "experts/history_record.h"
#include "experts/pack_header.h"
#include "experts/trace.h"
#include "proto/control.pb.h"
#include "proto/expert_map.pb.h"
#include "proto/inference.pb.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

namespace fs = std::filesystem;

class Corpus {
 public:
  explicit Corpus(const fs::path& dir) : dir_(dir) {}

  void Write(const std::string& fuzzer, const std::string& name,
             const std::string& bytes) const {
    fs::create_directories(dir_ / fuzzer);
    std::ofstream file(dir_ / fuzzer / name, std::ios::binary);
    file << bytes;
    PORTOLAN_CHECK(file.good());
  }
  std::string Path(const std::string& fuzzer, const std::string& name) const {
    fs::create_directories(dir_ / fuzzer);
    return (dir_ / fuzzer / name).string();
  }

 private:
  fs::path dir_;
};

void WriteTrace(const Corpus& corpus, const std::string& name,
                int32_t lookahead, int32_t num_steps) {
  const TraceHeader header{.num_layers = 3,
                           .num_experts = 4,
                           .top_k = 2,
                           .hidden = 4,
                           .lookahead = lookahead,
                           .expert_bytes = 4096,
                           .expert_memory_bytes = 16384,
                           .numerics_id = 7,
                           .fingerprint = 8,
                           .link_bytes_per_second = 1e9,
                           .link_latency_s = 5e-5,
                           .model = "m",
                           .policy = "lru"};
  auto writer = TraceWriter::Create(corpus.Path("trace_fuzz", name), header);
  PORTOLAN_CHECK(writer.ok());
  const auto halves = [](int64_t count) {
    return std::vector<Fp16>(static_cast<size_t>(count), ToFp16(0.25f));
  };
  for (int32_t i = 0; i < num_steps; ++i) {
    const int32_t tokens = i == 0 ? 3 : 1;
    TraceStep step{.step = i};
    step.slices = {{.sequence = 5,
                    .first_position = i == 0 ? 0 : 2 + i,
                    .num_tokens = tokens}};
    step.contexts = halves(header.hidden);
    step.tail_s = 1e-4f;
    for (int32_t t = 0; t < tokens; ++t) step.token_ids.push_back(10 + t);
    for (int32_t layer = 0; layer < header.num_layers; ++layer) {
      TraceLayer& to = step.layers.emplace_back();
      to.probabilities = halves(tokens * header.num_experts);
      if (lookahead >= 1 && layer + 1 < header.num_layers) {
        to.ahead1 = to.probabilities;
      }
      if (lookahead >= 2 && layer + 2 < header.num_layers) {
        to.ahead2 = to.probabilities;
      }
      for (int32_t t = 0; t < tokens; ++t) {
        to.experts.push_back(static_cast<uint16_t>((i + layer) % 3));
        to.experts.push_back(3);
      }
      to.weights = halves(tokens * header.top_k);
      to.gate_s = 1e-5f;
      to.experts_s = 2e-5f;
    }
    const std::vector<float> rows(static_cast<size_t>(tokens * header.hidden),
                                  0.5f);
    PORTOLAN_CHECK((*writer)->Append(step, {rows, tokens, header.hidden}).ok());
  }
}

void WriteHistories(const Corpus& corpus) {
  // The shape that history_fuzz expects.
  HistoryShape shape{.num_layers = 2,
                     .num_experts = 4,
                     .top_k = 1,
                     .hidden = 3,
                     .fingerprint = 1,
                     .iterations = 4,
                     .sequences = 4,
                     .token_ids = 16};
  corpus.Write("history_fuzz", "empty", History(shape).Serialize());
  const std::vector<float> embedding = {1, 2, 3};
  const std::vector<float> map = {0.1f, 0.2f, 0.3f, 0.4f,
                                  0.4f, 0.3f, 0.2f, 0.1f};
  for (const MapFormat format : {MapFormat::kExact, MapFormat::kCompact}) {
    shape.format = format;
    History history(shape);
    for (int i = 0; i < 6; ++i) {
      history.Learn(IterationRecord{.embedding = embedding, .map = map});
      history.Learn(SequenceRecord{.context = embedding,
                                   .map = map,
                                   .tokens = {i, i + 1},
                                   .experts = {0, 1, 2, 3}});
    }
    corpus.Write("history_fuzz",
                 format == MapFormat::kExact ? "full" : "compact",
                 history.Serialize());
  }
}

void WritePackHeaders(const Corpus& corpus) {
  // The choice, whether to write over a sound header, and where.
  corpus.Write("pack_header_fuzz", "sound", std::string("\0\1\0\0", 4));
  corpus.Write("pack_header_fuzz", "quantised", std::string("\1\1\0\0", 4));
  corpus.Write("pack_header_fuzz", "version",
               std::string("\0\1\x08\0\xff\xff\xff\xff", 8));
  const PackIdentity identity{.fingerprint = 0x0123456789abcdefu,
                              .numerics = "order 1",
                              .num_layers = 1,
                              .num_experts = 1,
                              .shape = {.hidden = 64, .intermediate = 32},
                              .format = WeightFormat::kBf16,
                              .slot_bytes = 12288};
  const std::vector<uint64_t> hashes = {0x1122334455667788u};
  const std::vector<std::byte> head = EncodePackHeader(identity, hashes);
  corpus.Write(
      "pack_header_fuzz", "whole",
      std::string("\0\0\0\0", 4) +
          std::string(reinterpret_cast<const char*>(head.data()), head.size()));
}

v1::SamplingParams AllParams() {
  v1::SamplingParams params;
  params.set_max_tokens(64);
  params.set_temperature(0.7);
  params.set_top_p(0.9);
  params.set_top_k(40);
  params.set_min_p(0.05);
  params.set_seed(1);
  params.add_stop("\n\n");
  params.add_stop_token_ids(7);
  params.set_ignore_eos(true);
  params.set_logprobs(2);
  params.set_repetition_penalty(1.1);
  params.set_presence_penalty(0.5);
  params.set_frequency_penalty(-0.5);
  params.set_n(1);
  return params;
}

void WriteRequests(const Corpus& corpus) {
  const auto write = [&](const char* name, const auto& message) {
    corpus.Write("request_validation_fuzz", name, message.SerializeAsString());
  };
  v1::GenerateRequest text;
  text.set_model("tiny");
  text.set_text("Once upon a time");
  *text.mutable_params() = AllParams();
  text.set_idempotency_key("key");
  text.set_custom_id("custom");
  text.mutable_timeout()->set_seconds(5);
  write("text", text);
  v1::GenerateRequest tokens;
  for (const int id : {1, 2, 3}) tokens.mutable_tokens()->add_ids(id);
  write("tokens", tokens);
  v1::GenerateRequest wrong = tokens;
  wrong.mutable_params()->set_top_p(-1);
  write("wrong", wrong);
  v1::ListRequest list;
  list.add_states(v1::REQUEST_STATE_DONE);
  list.set_page_size(10);
  list.set_page_token("77");
  write("list", list);
  v1::WatchRequest watch;
  watch.set_request_id("r1-0123456789abcdef");
  watch.set_from_offset(3);
  write("watch", watch);

  v1::RankMessage attach;
  v1::Register& registration = *attach.mutable_register_();
  registration.set_protocol_version(1);
  registration.set_job("job");
  registration.set_rank(1);
  registration.set_world_size(2);
  registration.set_incarnation(9);
  registration.set_host("host");
  registration.mutable_model()->set_name("tiny");
  registration.mutable_model()->set_fingerprint("f00d");
  registration.mutable_model()->set_numerics_id("n1");
  registration.mutable_capacity()->set_max_sequences(8);
  *registration.mutable_defaults() = AllParams();
  v1::RunningRequest& running = *registration.add_running();
  running.set_request_id("r1-0123456789abcdef");
  running.set_attempt(1);
  running.set_held_from(2);
  running.set_next_offset(4);
  write("register", attach);
  v1::RankMessage batch;
  v1::TokenDelta& delta = *batch.mutable_tokens()->add_deltas();
  delta.set_request_id("r1-0123456789abcdef");
  delta.set_attempt(1);
  for (const char* piece : {"Once", " upon", ""}) {
    delta.add_token_ids(5);
    delta.add_texts(piece);
    delta.add_logprobs()->mutable_chosen()->set_logprob(-1);
  }
  delta.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
  delta.mutable_finish()->set_text_tail("!");
  write("deltas", batch);
}

// One entry of coordinator_message_fuzz.
std::string Event(char kind, const std::string& bytes = "") {
  std::string event = {kind, static_cast<char>(bytes.size() & 0xff),
                       static_cast<char>(bytes.size() >> 8)};
  return event + bytes;
}
std::string Message(const v1::CoordinatorMessage& message) {
  return Event(0, message.SerializeAsString());
}
constexpr char kStep = 2, kTime = 4, kEnd = 5, kConnect = 6, kDrain = 7,
               kRelease = 8, kUpdate = 9;

std::string Accept(uint32_t next_offset = 0, bool resumes = false) {
  v1::CoordinatorMessage message;
  v1::Accepted& accepted = *message.mutable_accepted();
  accepted.set_heartbeat_ms(1000);
  accepted.set_reattach_ms(10000);
  accepted.set_max_held_tokens(8);
  if (resumes) {
    v1::Resume& resume = *accepted.add_resume();
    resume.set_request_id("a");
    resume.set_attempt(1);
    resume.set_next_offset(next_offset);
  }
  return Message(message);
}
std::string Assign(const char* id, uint32_t attempt = 1) {
  v1::CoordinatorMessage message;
  v1::Assign& assign = *message.mutable_assign();
  assign.set_serial(1);
  assign.set_request_id(id);
  assign.set_attempt(attempt);
  assign.set_text("Once");
  *assign.mutable_params() = AllParams();
  assign.add_prefix(7);
  assign.set_timeout_ms(5000);
  assign.set_start_within_ms(500);
  return Message(message);
}
std::string Ack(const char* id, uint32_t next_offset, bool finished) {
  v1::CoordinatorMessage message;
  v1::Durable& durable = *message.mutable_ack()->add_durable();
  durable.set_request_id(id);
  durable.set_attempt(1);
  durable.set_next_offset(next_offset);
  durable.set_finished(finished);
  return Message(message);
}

void WriteCoordinatorMessages(const Corpus& corpus) {
  const auto write = [&](const char* name, const std::string& bytes) {
    corpus.Write("coordinator_message_fuzz", name, bytes);
  };
  const std::string begin = Accept() + Assign("a") + Assign("b");
  write("served", begin + Event(kStep) + Event(kStep) + Ack("a", 2, false) +
                      Event(kStep) + Event(kEnd) + Ack("a", 4, true) +
                      Ack("b", 4, true));
  write("again", begin + Event(kStep) + Event(kStep) + Event(kConnect) +
                     Accept(2, true) + Event(kStep));
  write("drained",
        begin + Event(kStep) + Event(kDrain) + Assign("c") + Event(kRelease));
  write("late", begin + Event(kTime, std::string(60, 'x')) + Event(kStep) +
                    Event(kTime, std::string(600, 'x')) + Event(kStep));
  v1::CoordinatorMessage cancel;
  cancel.mutable_cancel()->set_request_id("a");
  cancel.mutable_cancel()->set_attempt(1);
  v1::CoordinatorMessage resend;
  resend.mutable_resend()->set_request_id("b");
  resend.mutable_resend()->set_attempt(1);
  resend.mutable_resend()->set_next_offset(1);
  v1::CoordinatorMessage wake, drain;
  wake.mutable_wake();
  drain.mutable_drain();
  write("commands", begin + Message(wake) + Event(kStep) + Message(cancel) +
                        Message(resend) + Message(drain) + Assign("a", 2) +
                        Event(kStep));
  v1::ExpertMapUpdate update;
  update.set_version(3);
  update.set_snapshot_begin(true);
  const RecordShape shape{
      .num_layers = 2, .num_experts = 4, .top_k = 2, .hidden = 3};
  const std::vector<float> map(8, 0.25f);
  for (const HistoryRow& row :
       {EncodeRecord(shape,
                     IterationRecord{.embedding = {1, 2, 3}, .map = map}),
        EncodeRecord(shape, SequenceRecord{.context = {1, 2, 3},
                            .map = map,
                            .tokens = {4},
                            .experts = {0, 1, 2, 3}})}) {
    v1::ExpertMapRow& added = *update.add_added();
    added.set_id(static_cast<uint64_t>(update.added_size()));
    added.set_key(row.key);
    added.set_map(row.map);
  }
  update.set_complete(true);
  write("maps", Event(kUpdate, update.SerializeAsString()));
}

void WriteSafetensors(const Corpus& corpus) {
  // The length of the data section comes first.
  const auto write = [&](const char* name, uint16_t bytes, const char* text) {
    corpus.Write("safetensors_fuzz", name,
                 std::string{static_cast<char>(bytes & 0xff),
                             static_cast<char>(bytes >> 8)} +
                     text);
  };
  write("two", 40,
        R"({"__metadata__":{"format":"pt"},"a":{"dtype":"BF16","shape":[4,3],)"
        R"("data_offsets":[0,24]},"b":{"dtype":"F32","shape":[4],)"
        R"("data_offsets":[24,40]}})");
  write("hole", 40,
        R"({"a":{"dtype":"F16","shape":[2],"data_offsets":[8,12]}})");
  write("fp8", 4,
        R"({"a":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[0,4]}})");
  write(
      "index", 0,
      R"({"metadata":{"total_size":40},"weight_map":{"a":"model-1.safetensors",)"
      R"("b":"model-2.safetensors"}})");
}

}  // namespace
}  // namespace portolan

int main(int argc, char** argv) {
  using namespace portolan;
  if (argc != 2) {
    std::fprintf(stderr, "usage: make_seeds CORPUS\n");
    return 2;
  }
  const Corpus corpus(argv[1]);
  WriteTrace(corpus, "plain", 0, 2);
  WriteTrace(corpus, "lookahead", 2, 3);
  WriteHistories(corpus);
  WritePackHeaders(corpus);
  WriteRequests(corpus);
  WriteCoordinatorMessages(corpus);
  WriteSafetensors(corpus);
  return 0;
}
