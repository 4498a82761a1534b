// Whether it says that it serves: as ranks come and go, and as it drains.

#include <gmock/gmock.h>
#include <sys/socket.h>
#include <unistd.h>

#include "proto/health.grpc.pb.h"
#include "tests/coordinator_server_faults_fixture.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using Kind = v1::CoordinatorMessage;

std::string HttpGet(const Coordinator& coordinator, const std::string& path) {
  const int fd = ConnectTo(coordinator.http_address());
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
bool IsServing(const Coordinator& coordinator, const std::string& service) {
  const auto health = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
      coordinator.address(), grpc::InsecureChannelCredentials()));
  grpc::ClientContext context;
  grpc::health::v1::HealthCheckRequest request;
  request.set_service(service);
  grpc::health::v1::HealthCheckResponse response;
  const grpc::Status status = health->Check(&context, request, &response);
  EXPECT_TRUE(status.ok()) << status.error_message();
  return response.status() == grpc::health::v1::HealthCheckResponse::SERVING;
}

// Until the watch says so; the hub tells after it has answered the rank.
void WaitForHealth(const Coordinator& coordinator, const std::string& service,
                   bool serving) {
  const auto health = grpc::health::v1::Health::NewStub(grpc::CreateChannel(
      coordinator.address(), grpc::InsecureChannelCredentials()));
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

TEST_F(CoordinatorFaultsTest, InferenceIsServedWhileARankIsAttached) {
  Start();
  EXPECT_TRUE(IsServing(*coordinator_, ""))
      << "it takes requests, ranks may come later";
  EXPECT_FALSE(IsServing(*coordinator_, "portolan.v1.Inference"));

  const auto rank = AttachedRank();
  WaitForHealth(*coordinator_, "portolan.v1.Inference", true);
  rank->Goodbye(true);
  WaitForHealth(*coordinator_, "portolan.v1.Inference", false);
  EXPECT_TRUE(IsServing(*coordinator_, ""));
}

TEST_F(CoordinatorFaultsTest, AServiceWithItsOwnRanksIsNotServedWithoutThem) {
  options_.has_own_ranks = true;
  options_.http = "127.0.0.1:0";
  Start();
  EXPECT_FALSE(IsServing(*coordinator_, ""));
  EXPECT_THAT(HttpGet(*coordinator_, "/healthz"), HasSubstr("503"));

  const auto rank = AttachedRank();
  WaitForHealth(*coordinator_, "", true);
  EXPECT_TRUE(IsServing(*coordinator_, "portolan.v1.Inference"));
  EXPECT_THAT(HttpGet(*coordinator_, "/healthz"), HasSubstr("200 OK"));
}

TEST_F(CoordinatorFaultsTest, DrainEndsWhatRunsAndTakesNothingNew) {
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  const v1::Assign assign = rank->NextAssign();
  const auto serving = [&] { return IsServing(*coordinator_, ""); };
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

TEST_F(CoordinatorFaultsTest, ServesMetricsHealthAndAPageForPeople) {
  options_.http = "127.0.0.1:0";
  Start();
  const auto rank = AttachedRank();
  Stream stream(*this, Request());
  rank->SendTokens(rank->NextAssign(), 0, 3, v1::FINISH_REASON_STOP);
  stream.ReadAll();

  EXPECT_THAT(HttpGet(*coordinator_, "/metrics"),
              HasSubstr("portolan_generation_tokens_total{model_name=\"tiny\"} "
                        "3"));
  EXPECT_THAT(HttpGet(*coordinator_, "/healthz"), HasSubstr("200 OK"));
  EXPECT_THAT(HttpGet(*coordinator_, "/"), HasSubstr("1 done"));
  EXPECT_THAT(HttpGet(*coordinator_, "/nothing"), HasSubstr("404"));
  coordinator_->Drain();
  EXPECT_THAT(HttpGet(*coordinator_, "/healthz"), HasSubstr("503"));
}

}  // namespace
}  // namespace portolan
