#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>

#include "proto/health.grpc.pb.h"
#include "proto/rpc_status.pb.h"
#include "tests/coordinator_server_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using Kind = v1::CoordinatorMessage;

class CoordinatorFaultsTest : public CoordinatorTest {
 protected:
  // The registration of a process that holds `assign` with its tokens
  // [held_from, next).
  static v1::Register Holding(const v1::Assign& assign, uint32_t held_from,
                              uint32_t next, uint64_t incarnation = 1) {
    v1::Register registration = FakeRank::Registration(0, incarnation);
    v1::RunningRequest& running = *registration.add_running();
    running.set_request_id(assign.request_id());
    running.set_attempt(assign.attempt());
    running.set_held_from(held_from);
    running.set_next_offset(next);
    return registration;
  }
  static int Connect(const std::string& address) {
    const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in to = {};
    to.sin_family = AF_INET;
    to.sin_port = htons(static_cast<uint16_t>(
        std::stoi(address.substr(address.rfind(':') + 1))));
    inet_pton(AF_INET, "127.0.0.1", &to.sin_addr);
    EXPECT_EQ(connect(fd, reinterpret_cast<sockaddr*>(&to), sizeof(to)), 0);
    return fd;
  }
  // A call of Submit in plain HTTP/2, for gRPC's own client refuses to send
  // some headers. Returns once the call is answered.
  void SubmitWithHeader(const std::string& name, const std::string& value) {
    const auto frame = [](char type, char flags, const std::string& payload) {
      std::string bytes(3, '\0');
      for (int i = 0; i < 3; ++i) {
        bytes[static_cast<size_t>(i)] =
            static_cast<char>(payload.size() >> (16 - 8 * i));
      }
      const char stream = type == 4 ? 0 : 1;
      return bytes + type + flags + std::string(3, '\0') + stream + payload;
    };
    // HPACK: literals that are not indexed, without Huffman codes.
    std::string headers;
    const auto header = [&](const std::string& key, const std::string& text) {
      headers += '\0';
      headers += static_cast<char>(key.size()) + key;
      headers += static_cast<char>(text.size()) + text;
    };
    header(":method", "POST");
    header(":scheme", "http");
    header(":path", "/portolan.v1.Inference/Submit");
    header(":authority", "x");
    header("content-type", "application/grpc");
    header("te", "trailers");
    header(name, value);
    const std::string message = Request().SerializeAsString();
    const std::string call =
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, "") +
        frame(1, 4, headers) +
        frame(
            0, 1,
            std::string(4, '\0') + static_cast<char>(message.size()) + message);
    const int fd = Connect(coordinator_->address());
    EXPECT_GT(send(fd, call.data(), call.size(), MSG_NOSIGNAL), 0);
    // Until the frame with trailers: HEADERS with END_STREAM.
    std::string answer;
    const auto ended = [&] {
      for (size_t at = 0; at + 9 <= answer.size();) {
        const auto byte = [&](size_t i) {
          return static_cast<unsigned char>(answer[at + i]);
        };
        if (byte(3) == 1 && (byte(4) & 1) != 0) return true;
        at += 9 + (size_t{byte(0)} << 16 | size_t{byte(1)} << 8 | byte(2));
      }
      return false;
    };
    char buffer[4096];
    for (ssize_t n;
         !ended() && (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
    EXPECT_TRUE(ended());
    close(fd);
  }
  std::string HttpGet(const std::string& path) {
    const int fd = Connect(coordinator_->http_address());
    const std::string request =
        "GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    EXPECT_GT(send(fd, request.data(), request.size(), MSG_NOSIGNAL), 0);
    std::string answer;
    char buffer[4096];
    for (ssize_t n; (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
      answer.append(buffer, static_cast<size_t>(n));
    }
    close(fd);
    return answer;
  }
  // As grpc.health.v1 says it.
  bool IsServing(const std::string& service) {
    const auto health = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
        coordinator_->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    grpc::health::v1::HealthCheckResponse response;
    const grpc::Status status = health->Check(&context, request, &response);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
  }
  // Until the watch says so; the hub tells after it has answered the rank.
  void WaitForHealth(const std::string& service, bool serving) {
    const auto health = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
        coordinator_->address(), grpc::InsecureChannelCredentials()));
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTestPatience));
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(service);
    const auto watch = health->Watch(&context, request);
    grpc::health::v1::HealthCheckResponse response;
    bool seen = false;
    while (!seen && watch->Read(&response)) {
      seen = serving == (response.status() ==
                         grpc::health::v1::HealthCheckResponse::SERVING);
    }
    EXPECT_TRUE(seen);
    context.TryCancel();
  }
  // Attaches a new process of the rank as soon as the old one is given up.
  std::unique_ptr<FakeRank> Successor(uint64_t incarnation) {
    const absl::Time deadline = absl::Now() + kTestPatience;
    while (absl::Now() < deadline) {
      auto rank = NewRank();
      if (rank->Attach(FakeRank::Registration(0, incarnation)).heartbeat_ms() >
          0) {
        return rank;
      }
    }
    return nullptr;
  }
};

TEST_F(CoordinatorFaultsTest, TakesTokensOnceHoweverOftenTheyAreSent) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();

  rank->SendTokens(assign, 0, 3);
  rank->SendTokens(assign, 0, 3);
  rank->SendTokens(assign, 1, 4);
  rank->SendTokens(assign, 4, 2, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_EQ(stream.tokens, Count(0, 6));
  EXPECT_EQ(stream.text, "0 1 2 3 4 5 ");
}

TEST_F(CoordinatorFaultsTest, AsksForTokensThatAreMissing) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();

  rank->SendTokens(assign, 0, 2);
  rank->SendTokens(assign, 4, 2);
  const auto resend = rank->Next(Kind::kResend);

  ASSERT_TRUE(resend.has_value());
  EXPECT_EQ(resend->resend().next_offset(), 2u);
  rank->SendTokens(assign, 2, 4, v1::FINISH_REASON_STOP);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 6));
}

TEST_F(CoordinatorFaultsTest, ARankThatComesBackGoesOnWhereItWas) {
  Start();
  auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  rank->SendTokens(assign, 0, 2);
  rank->Next(Kind::kAck);
  rank->Break();
  rank->Ended();

  rank = NewRank();
  const v1::Accepted accepted = rank->Attach(Holding(assign, 2, 5));

  ASSERT_EQ(accepted.resume_size(), 1);
  EXPECT_FALSE(accepted.resume(0).drop());
  EXPECT_EQ(accepted.resume(0).next_offset(), 2u);
  rank->SendTokens(assign, 2, 3, v1::FINISH_REASON_STOP);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 5));
}

TEST_F(CoordinatorFaultsTest, AnotherRankGoesOnFromTheTokensThatWereKept) {
  Start();
  auto first = AttachedRank(0);
  const auto second = AttachedRank(1);
  Stream stream(*this, Request());
  const v1::Assign assign = first->NextAssign();
  first->SendTokens(assign, 0, 2);
  first->Next(Kind::kAck);

  first->Goodbye(false);
  const v1::Assign again = second->NextAssign();

  EXPECT_EQ(again.request_id(), assign.request_id());
  EXPECT_EQ(again.attempt(), 2u);
  EXPECT_THAT(again.prefix(), SizeIs(2));
  EXPECT_EQ(again.params().seed(), assign.params().seed());
  second->SendTokens(again, 2, 2, v1::FINISH_REASON_LENGTH);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 4));
}

TEST_F(CoordinatorFaultsTest, TokensOfAnOlderAttemptAreFencedOff) {
  Start();
  auto first = AttachedRank(0);
  const auto second = AttachedRank(1);
  Stream stream(*this, Request());
  const v1::Assign old = first->NextAssign();
  v1::RankMessage release;
  release.mutable_release()->add_requests()->set_request_id(old.request_id());
  release.mutable_release()->mutable_requests(0)->set_attempt(old.attempt());
  v1::RankMessage busy;
  busy.mutable_heartbeat()->set_draining(true);
  first->Send(busy);
  first->Send(release);
  const v1::Assign assign = second->NextAssign();

  v1::RankMessage stale;
  v1::TokenDelta& delta = *stale.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(old, 0, 1);
  delta.set_token_ids(0, 999);
  first->Send(stale);
  const auto cancel = first->Next(Kind::kCancel);
  second->SendTokens(assign, 0, 2, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->cancel().attempt(), old.attempt());
  EXPECT_EQ(stream.tokens, Count(0, 2));
}

TEST_F(CoordinatorFaultsTest, ARequestThatKillsItsRankThreeTimesIsPoison) {
  Start();
  Stream stream(*this, Request());
  for (uint64_t incarnation = 1; incarnation <= 3; ++incarnation) {
    const auto rank = Successor(incarnation);
    ASSERT_NE(rank, nullptr);
    EXPECT_EQ(rank->NextAssign().attempt(), incarnation);
    rank->Goodbye(false);
    rank->Ended();
  }
  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INTERNAL);
  EXPECT_THAT(stream.status.error_message(), HasSubstr("poison"));
  EXPECT_EQ(stream.finish.reason(), v1::FINISH_REASON_ERROR);
  EXPECT_EQ(Get(stream.id).state(), v1::REQUEST_STATE_FAILED);
}

TEST_F(CoordinatorFaultsTest, ACoordinatorThatRestartsFindsItsRunningRanks) {
  options_.hub.queue.reattach = kTestPatience;
  Start();
  auto rank = AttachedRank();
  const std::string id = Submit().response.request_id();
  const v1::Assign assign = rank->NextAssign();
  rank->SendTokens(assign, 0, 2);
  rank->Next(Kind::kAck);
  Stop();
  Start();
  const auto stranger = AttachedRank(1);

  rank = NewRank();
  const v1::Accepted accepted = rank->Attach(Holding(assign, 2, 4));
  ASSERT_EQ(accepted.resume_size(), 1);
  EXPECT_FALSE(accepted.resume(0).drop());
  rank->SendTokens(assign, 2, 2, v1::FINISH_REASON_STOP);
  Stream stream(*this, id, 1);
  stream.ReadAll();

  EXPECT_EQ(stream.tokens, Count(1, 3));
  EXPECT_EQ(Get(id).attempt(), 1u) << "it was given to the other rank";
}

TEST_F(CoordinatorFaultsTest,
       NothingIsAssignedAnewBeforeTheReattachTimeIsOver) {
  options_.hub.queue.reattach = absl::Milliseconds(400);
  Start();
  auto rank = AttachedRank();
  Submit();
  rank->NextAssign();
  const auto other = AttachedRank(1);

  const absl::Time broken = absl::Now();
  rank->Break();
  const v1::Assign again = other->NextAssign();

  EXPECT_EQ(again.attempt(), 2u);
  EXPECT_GE(absl::Now() - broken, absl::Milliseconds(350));
}

TEST_F(CoordinatorFaultsTest, AClientThatGoesAwayCancelsItsRequest) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  stream.Read();

  stream.Cancel();
  const auto cancel = rank->Next(Kind::kCancel);

  ASSERT_TRUE(cancel.has_value());
  EXPECT_EQ(cancel->cancel().request_id(), assign.request_id());
  // The rank may hear of it before the end is on disk.
  const absl::Time deadline = absl::Now() + absl::Seconds(10);
  while (Get(assign.request_id()).state() == v1::REQUEST_STATE_RUNNING &&
         absl::Now() < deadline) {
  }
  EXPECT_EQ(Get(assign.request_id()).state(), v1::REQUEST_STATE_CANCELLED);
}

TEST_F(CoordinatorFaultsTest, ASubmittedRequestOutlivesItsWatchers) {
  Start();
  const auto rank = AttachedRank();
  const std::string id = Submit().response.request_id();
  const v1::Assign assign = rank->NextAssign();
  {
    Stream stream(*this, id, 0);
    stream.Read();
  }
  rank->SendTokens(assign, 0, 1, v1::FINISH_REASON_STOP);

  Stream stream(*this, id, 0);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 1));
}

TEST_F(CoordinatorFaultsTest, ASubmitWithTheKeyOfAGenerateMakesItLast) {
  Start();
  std::string id;
  {
    Stream stream(*this, Request("key"));
    stream.Read();
    id = stream.id;
    const Submitted again = Submit(Request("key"));
    ASSERT_TRUE(again.status.ok()) << again.status.error_message();
    EXPECT_TRUE(again.response.existed());
    EXPECT_EQ(again.response.request_id(), id);
  }  // the call's client goes
  Stop();
  Start();
  const auto rank = AttachedRank();
  const v1::Assign assign = rank->NextAssign();
  EXPECT_EQ(assign.request_id(), id);
  EXPECT_EQ(assign.timeout_ms(), 0u) << "the deadline was the call's";
  rank->SendTokens(assign, 0, 2, v1::FINISH_REASON_STOP);
  Stream stream(*this, id, 0);
  stream.ReadAll();
  EXPECT_EQ(stream.tokens, Count(0, 2));
}

TEST_F(CoordinatorFaultsTest, ADrainLetsARankComeBackWithWhatItRuns) {
  options_.hub.queue.reattach = kTestPatience;
  Start();
  auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  coordinator_->Drain();
  rank->Break();
  rank->Ended();

  rank = NewRank();
  ASSERT_EQ(rank->Attach(Holding(assign, 0, 2)).resume_size(), 1);
  EXPECT_TRUE(rank->Next(Kind::kDrain).has_value());
  rank->SendTokens(assign, 0, 2, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_EQ(stream.tokens, Count(0, 2));
  EXPECT_TRUE(coordinator_->WaitDrained(kTestPatience));
}

TEST_F(CoordinatorFaultsTest, APromptThatARankFoundTooLongIsABadField) {
  options_.hub.limits.max_prompt_tokens = 5;
  Start();
  const auto rank = AttachedRank();
  v1::GenerateRequest request;
  request.set_text("many words");
  Stream stream(*this, request);
  const v1::Assign assign = rank->NextAssign();
  EXPECT_EQ(assign.max_prompt_tokens(), 5u);
  v1::RankMessage message;
  v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(assign, 0, 0);
  delta.mutable_finish()->set_reason(v1::FINISH_REASON_ERROR);
  v1::Error& error = *delta.mutable_finish()->mutable_error();
  error.set_code(3);
  error.set_field("text");
  error.set_message("text has 6 tokens");
  rank->Send(message);
  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(stream.status.error_details()));
  google::rpc::BadRequest bad;
  ASSERT_TRUE(details.details(0).UnpackTo(&bad));
  EXPECT_EQ(bad.field_violations(0).field(), "text");
  EXPECT_EQ(Get(stream.id).state(), v1::REQUEST_STATE_FAILED);
}

TEST_F(CoordinatorFaultsTest, StatsRefuseAFieldThatIsNotKnown) {
  Start();
  v1::GetStatsRequest request;
  request.GetReflection()->MutableUnknownFields(&request)->AddVarint(77, 1);
  grpc::ClientContext context;
  v1::Stats stats;
  const grpc::Status status = client_->GetStats(&context, request, &stats);

  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_THAT(status.error_message(), HasSubstr("#77"));
}

TEST_F(CoordinatorFaultsTest, ADeadlineEndsARequestInDecode) {
  Start();
  const auto rank = AttachedRank();
  v1::GenerateRequest request = Request();
  request.mutable_timeout()->set_nanos(50'000'000);
  Stream stream(*this, request);
  const v1::Assign assign = rank->NextAssign();
  EXPECT_LE(assign.timeout_ms(), 50u);
  rank->SendTokens(assign, 0, 1);

  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_EQ(stream.tokens, Count(0, 1));
  EXPECT_TRUE(rank->Next(Kind::kCancel).has_value());
}

TEST_F(CoordinatorFaultsTest, ADeadlineEndsARequestThatWaits) {
  Start();
  v1::GenerateRequest request = Request();
  request.mutable_timeout()->set_nanos(50'000'000);

  Stream stream(*this, request);
  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
}

TEST_F(CoordinatorFaultsTest, TheCallsOwnDeadlineCountsToo) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request(), absl::Milliseconds(200));
  const v1::Assign assign = rank->NextAssign();
  EXPECT_LE(assign.timeout_ms(), 200u);

  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED);
  EXPECT_TRUE(rank->Next(Kind::kCancel).has_value());
}

TEST_F(CoordinatorFaultsTest, AFullQueueSaysWhenToTryAgain) {
  options_.hub.queue.max_queued_requests = 2;
  Start();
  Submit();
  Submit(Request("key"));

  grpc::ClientContext context;
  v1::SubmitResponse response;
  const grpc::Status status = client_->Submit(&context, Request(), &response);

  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  google::rpc::Status details;
  ASSERT_TRUE(details.ParseFromString(status.error_details()));
  google::rpc::RetryInfo info;
  ASSERT_TRUE(details.details(0).UnpackTo(&info));
  EXPECT_GE(info.retry_delay().seconds(), 1);
  const auto& trailers = context.GetServerTrailingMetadata();
  ASSERT_TRUE(trailers.contains("grpc-retry-pushback-ms"));
  EXPECT_TRUE(Submit(Request("key")).response.existed())
      << "a retry of what was accepted is no new request";
}

TEST_F(CoordinatorFaultsTest, AQuotaBindsOneClient) {
  options_.hub.queue.max_client_requests = 1;
  Start();
  EXPECT_TRUE(Submit().status.ok());

  const auto second = Submit();

  EXPECT_EQ(second.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(second.status.error_message(), HasSubstr("--client-requests"));
}

TEST_F(CoordinatorFaultsTest, StreamsOfAClientAreBounded) {
  options_.hub.max_client_streams = 2;
  Start();
  const std::string id = Submit().response.request_id();
  auto first = std::make_unique<Stream>(*this, id, 0);
  Stream second(*this, Request());
  ASSERT_TRUE(first->Read());
  ASSERT_TRUE(second.Read());

  Stream watch(*this, id, 0);
  Stream generate(*this, Request());
  watch.ReadAll();
  generate.ReadAll();

  for (const Stream* refused : {&watch, &generate}) {
    EXPECT_EQ(refused->status.error_code(),
              grpc::StatusCode::RESOURCE_EXHAUSTED);
    EXPECT_THAT(refused->status.error_message(), HasSubstr("--client-streams"));
  }
  EXPECT_EQ(Stats().accepted(), 2u) << "what is refused is not accepted";
  // One that ends makes room for another.
  first->Cancel();
  first->ReadAll();
  bool admitted = false;
  while (!admitted) {
    Stream again(*this, id, 0);
    admitted = again.Read();
    if (!admitted) {
      ASSERT_EQ(again.status.error_code(),
                grpc::StatusCode::RESOURCE_EXHAUSTED);
    }
  }
}

TEST_F(CoordinatorFaultsTest, AWatcherThatDoesNotReadHoldsUpNobody) {
  Start();
  const auto rank = AttachedRank();
  v1::GenerateRequest request;
  request.set_text("prompt");
  request.mutable_params()->set_max_tokens(100'000);
  const std::string id = Submit(request).response.request_id();
  const v1::Assign assign = rank->NextAssign();
  Stream lazy(*this, id, 0);
  Stream eager(*this, id, 0);

  for (int first = 0; first < 100'000; first += 1000) {
    rank->SendTokens(assign, first, 1000);
  }
  rank->SendTokens(assign, 100'000, 0, v1::FINISH_REASON_LENGTH);
  eager.ReadAll();
  lazy.ReadAll();

  EXPECT_THAT(eager.tokens, SizeIs(100'000));
  EXPECT_EQ(lazy.tokens, eager.tokens);
  EXPECT_EQ(lazy.text, eager.text);
}

TEST_F(CoordinatorFaultsTest, NobodyElseMayReadTheDataDirectory) {
  std::filesystem::create_directories(dir_);
  std::filesystem::permissions(dir_, std::filesystem::perms::all);
  Start();

  EXPECT_EQ(std::filesystem::status(dir_).permissions(),
            std::filesystem::perms::owner_all);
}

TEST_F(CoordinatorFaultsTest, InferenceIsServedWhileARankIsAttached) {
  Start();
  EXPECT_TRUE(IsServing("")) << "it takes requests, ranks may come later";
  EXPECT_FALSE(IsServing("portolan.v1.Inference"));

  const auto rank = AttachedRank();
  WaitForHealth("portolan.v1.Inference", true);
  rank->Goodbye(true);
  WaitForHealth("portolan.v1.Inference", false);
  EXPECT_TRUE(IsServing(""));
}

TEST_F(CoordinatorFaultsTest, AServiceWithItsOwnRanksIsNotServedWithoutThem) {
  options_.has_own_ranks = true;
  options_.http = "127.0.0.1:0";
  Start();
  EXPECT_FALSE(IsServing(""));
  EXPECT_THAT(HttpGet("/healthz"), HasSubstr("503"));

  const auto rank = AttachedRank();
  WaitForHealth("", true);
  EXPECT_TRUE(IsServing("portolan.v1.Inference"));
  EXPECT_THAT(HttpGet("/healthz"), HasSubstr("200 OK"));
}

TEST_F(CoordinatorFaultsTest, DrainEndsWhatRunsAndTakesNothingNew) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  const auto serving = [&] { return IsServing(""); };
  EXPECT_TRUE(serving());

  coordinator_->Drain();
  EXPECT_TRUE(rank->Next(Kind::kDrain).has_value());
  EXPECT_FALSE(serving());
  const auto refused = Submit();
  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_FALSE(coordinator_->WaitDrained(absl::ZeroDuration()));
  rank->SendTokens(assign, 0, 2, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_TRUE(coordinator_->WaitDrained(kTestPatience));
  EXPECT_EQ(stream.tokens, Count(0, 2));
  EXPECT_TRUE(stream.status.ok());
}

TEST_F(CoordinatorFaultsTest, AClientIsToldToComeBackAfterAStop) {
  Start();
  Stream stream(*this, Request());
  stream.Read();

  Stop();
  stream.ReadAll();

  EXPECT_EQ(stream.status.error_code(), grpc::StatusCode::UNAVAILABLE);
  options_.hub.queue.reattach = kTestPatience;
  Start();
  EXPECT_EQ(Get(stream.id).state(), v1::REQUEST_STATE_QUEUED);
}

TEST_F(CoordinatorFaultsTest, AnOddRankIsNamed) {
  Start();
  const auto rank = AttachedRank(0);
  const auto odd = NewRank();
  v1::Register registration = FakeRank::Registration(1, 2);
  registration.mutable_model()->set_numerics_id("n2");
  odd->Attach(registration);

  const grpc::Status status = odd->Ended();
  EXPECT_EQ(status.error_code(), grpc::StatusCode::FAILED_PRECONDITION);
  EXPECT_THAT(status.error_message(), HasSubstr("rank 1"));
  EXPECT_THAT(status.error_message(), HasSubstr("n2"));
}

TEST_F(CoordinatorFaultsTest, ASecondProcessOfALivingRankIsRefused) {
  Start();
  const auto rank = AttachedRank(0, 1);
  const auto twin = NewRank();
  twin->Attach(FakeRank::Registration(0, 2));

  EXPECT_EQ(twin->Ended().error_code(), grpc::StatusCode::ALREADY_EXISTS);
}

TEST_F(CoordinatorFaultsTest, ARankThatSpeaksOutOfTurnIsRefused) {
  Start();
  const auto rank = NewRank();
  rank->Send([] {
    v1::RankMessage message;
    message.mutable_heartbeat();
    return message;
  }());
  EXPECT_EQ(rank->Ended().error_code(), grpc::StatusCode::INVALID_ARGUMENT);

  const auto old = NewRank();
  v1::Register registration = FakeRank::Registration();
  registration.set_protocol_version(2);
  old->Attach(registration);
  EXPECT_EQ(old->Ended().error_code(), grpc::StatusCode::FAILED_PRECONDITION);
}

TEST_F(CoordinatorFaultsTest, AFullDiskRefusesNewRequestsAndEndsRunningOnes) {
  std::atomic<int64_t> free_bytes = int64_t{1} << 40;
  options_.store.free_bytes = [&](const std::string&) {
    return free_bytes.load();
  };
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  stream.Read();  // it is accepted
  free_bytes = 1000;

  const auto refused = Submit();
  rank->SendTokens(assign, 0, 3, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_EQ(refused.status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(refused.status.error_message(), HasSubstr("--min-free-disk"));
  EXPECT_THAT(refused.status.error_details(), HasSubstr("RetryInfo"));
  EXPECT_TRUE(stream.status.ok());
  EXPECT_EQ(stream.tokens, Count(0, 3));
  EXPECT_EQ(Stats().queued(), 0u);
  free_bytes = int64_t{1} << 40;
  EXPECT_TRUE(Submit().status.ok());
}

TEST_F(CoordinatorFaultsTest, AReallyFullDiskHoldsUpNothingButTokens) {
  options_.store.max_pages = 40;
  options_.hub.queue.reattach = kTestPatience;
  Start();
  auto rank = AttachedRank();
  v1::GenerateRequest first = Request("first");
  const std::string id = Submit(first).response.request_id();
  const v1::Assign assign = rank->NextAssign();
  // SQLite itself finds no room for these.
  v1::RankMessage message;
  v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(assign, 0, 1);
  const std::string text(200'000, 'x');
  delta.set_texts(0, text);
  rank->Send(message);

  // Those that come before the tokens are taken.
  grpc::Status refused;
  const absl::Time deadline = absl::Now() + kTestPatience;
  while (refused.ok() && absl::Now() < deadline) {
    refused = Submit().status;
  }
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
      << refused.error_message();
  EXPECT_THAT(refused.error_message(), HasSubstr("full"));
  EXPECT_THAT(refused.error_details(), HasSubstr("RetryInfo"));
  EXPECT_EQ(Get(id).num_tokens(), 0u) << "what is not kept is not shown";
  EXPECT_EQ(Submit(first).response.request_id(), id);
  {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + kTestPatience));
    v1::ListResponse list;
    const grpc::Status listed = client_->List(&context, {}, &list);
    EXPECT_TRUE(listed.ok()) << listed.error_message();
    EXPECT_GE(list.requests_size(), 1);
  }

  Stop();  // waits for nothing
  options_.store.max_pages = 0;
  Start();
  rank = NewRank();
  ASSERT_EQ(rank->Attach(Holding(assign, 0, 1)).resume_size(), 1);
  delta.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
  rank->Send(message);
  Stream stream(*this, id, 0);
  stream.ReadAll();
  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text, text);
}

TEST_F(CoordinatorFaultsTest, ASubmitIsNotAnsweredBeforeTheDiskHasIt) {
  options_.store.max_pages = 40;
  options_.hub.queue.reattach = kTestPatience;
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request("key"));
  const v1::Assign assign = rank->NextAssign();
  stream.Read();  // it is accepted
  v1::RankMessage message;
  v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(assign, 0, 1);
  delta.set_texts(0, std::string(200'000, 'x'));
  rank->Send(message);
  grpc::Status refused;
  const absl::Time deadline = absl::Now() + kTestPatience;
  while (refused.ok() && absl::Now() < deadline) {
    refused = Submit().status;
  }

  for (int time = 0; time < 2; ++time) {
    const grpc::Status status = Submit(Request("key")).status;
    EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED)
        << time << ": " << status.error_message();
  }
}

TEST_F(CoordinatorFaultsTest, AClockThatWasSetBackChangesNoOrderAndNoDeadline) {
  const absl::Time noon = absl::FromUnixSeconds(1'800'000'000);
  options_.wall_now = noon;
  Start();
  v1::GenerateRequest request = Request();
  request.mutable_timeout()->set_seconds(60);
  const std::string first = Submit(request).response.request_id();
  Stop();

  options_.wall_now = noon - absl::Hours(5);
  Start();
  const std::string second = Submit().response.request_id();

  const v1::RequestInfo before = Get(first);
  const v1::RequestInfo after = Get(second);
  EXPECT_EQ(before.state(), v1::REQUEST_STATE_QUEUED);
  EXPECT_GE(after.created().seconds(), before.created().seconds());
  const auto rank = AttachedRank();
  const v1::Assign assign = rank->NextAssign();
  EXPECT_EQ(assign.request_id(), first) << "the older one goes first";
  EXPECT_LE(assign.timeout_ms(), 60'000u);
  EXPECT_GE(assign.timeout_ms(), 30'000u);
}

TEST_F(CoordinatorFaultsTest, ServesMetricsHealthAndAPageForPeople) {
  options_.http = "127.0.0.1:0";
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  rank->SendTokens(rank->NextAssign(), 0, 3, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_THAT(HttpGet("/metrics"),
              HasSubstr("portolan_generation_tokens_total{model_name=\"tiny\"} "
                        "3"));
  EXPECT_THAT(HttpGet("/healthz"), HasSubstr("200 OK"));
  EXPECT_THAT(HttpGet("/"), HasSubstr("1 done"));
  EXPECT_THAT(HttpGet("/nothing"), HasSubstr("404"));
  coordinator_->Drain();
  EXPECT_THAT(HttpGet("/healthz"), HasSubstr("503"));
}

TEST_F(CoordinatorFaultsTest, SendsBackTheCallersRequestId) {
  Start();
  grpc::ClientContext context;
  context.AddMetadata("x-request-id", "mine");
  v1::SubmitResponse response;
  ASSERT_TRUE(client_->Submit(&context, Request(), &response).ok());

  const auto& metadata = context.GetServerInitialMetadata();
  ASSERT_TRUE(metadata.contains("x-request-id"));
  EXPECT_EQ(metadata.find("x-request-id")->second, "mine");
}

TEST_F(CoordinatorFaultsTest, HeadersOfAnyBytesHarmNeitherItNorRanks) {
  Start();
  const auto rank = AttachedRank();

  SubmitWithHeader("x-request-id", "\x80\xff");
  EXPECT_EQ(rank->NextAssign().traceparent(), "");
  SubmitWithHeader("traceparent", "\x80\xff");
  EXPECT_EQ(rank->NextAssign().traceparent(), "");
  const std::string trace =
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  SubmitWithHeader("traceparent", trace);
  EXPECT_EQ(rank->NextAssign().traceparent(), trace);
}

TEST_F(CoordinatorFaultsTest, OversizedMessagesAreRefused) {
  options_.max_message_bytes = 100'000;
  Start();
  v1::GenerateRequest request;
  request.set_text(std::string(200'000, 'x'));

  EXPECT_EQ(Submit(request).status.error_code(),
            grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_TRUE(Submit().status.ok());
}

TEST_F(CoordinatorFaultsTest, TheLimitOfClientsMessagesDoesNotBindRanks) {
  options_.max_message_bytes = 10'000;
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  v1::RankMessage message;
  v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
  delta = FakeRank::Delta(assign, 0, 1);
  delta.set_texts(0, std::string(100'000, 'x'));
  delta.mutable_finish()->set_reason(v1::FINISH_REASON_STOP);
  rank->Send(message);
  stream.ReadAll();

  EXPECT_TRUE(stream.status.ok()) << stream.status.error_message();
  EXPECT_EQ(stream.text.size(), 100'000u);
}

TEST_F(CoordinatorFaultsTest, LimitsThatLetNothingInAreNoOptions) {
  options_.max_message_bytes = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(options_.Validate()));
  options_.max_message_bytes = 10'000;
  options_.hub.limits.max_prompt_tokens = 0;
  EXPECT_TRUE(absl::IsInvalidArgument(options_.Validate()));
}

}  // namespace
}  // namespace portolan
