// What clients do wrong, and what is told them when others do.

#include <gmock/gmock.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/rpc_status.pb.h"
#include "tests/coordinator_server_faults_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::SizeIs;
using Kind = v1::CoordinatorMessage;

// A call of Submit in plain HTTP/2, for gRPC's own client refuses to send
// some headers. Returns once the call is answered.
void SubmitWithHeader(const Coordinator& coordinator,
                      const v1::GenerateRequest& request,
                      const std::string& name, const std::string& value) {
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
  const std::string message = request.SerializeAsString();
  const std::string call =
      "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(4, 0, "") +
      frame(1, 4, headers) +
      frame(0, 1,
            std::string(4, '\0') + static_cast<char>(message.size()) + message);
  const int fd = ConnectTo(coordinator.address());
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
  for (ssize_t n; !ended() && (n = recv(fd, buffer, sizeof(buffer), 0)) > 0;) {
    answer.append(buffer, static_cast<size_t>(n));
  }
  EXPECT_TRUE(ended());
  close(fd);
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

  SubmitWithHeader(*coordinator_, Request(), "x-request-id", "\x80\xff");
  EXPECT_EQ(rank->NextAssign().traceparent(), "");
  SubmitWithHeader(*coordinator_, Request(), "traceparent", "\x80\xff");
  EXPECT_EQ(rank->NextAssign().traceparent(), "");
  const std::string trace =
      "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
  SubmitWithHeader(*coordinator_, Request(), "traceparent", trace);
  EXPECT_EQ(rank->NextAssign().traceparent(), trace);
}

}  // namespace
}  // namespace portolan
