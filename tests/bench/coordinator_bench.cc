// coordinator_bench DIR: what the coordinator alone can do on the disk of DIR:
// requests that it accepts a second (each is on disk when it is
// answered; one fsync serves all that wait), and what it adds to the time to
// the first token.

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <filesystem>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

#include "cluster/coordinator/server/coordinator.h"
#include "proto/inference.grpc.pb.h"
#include "tests/coordinator_fake_rank.h"

namespace portolan {
namespace {

v1::GenerateRequest Request() {
  v1::GenerateRequest request;
  for (int i = 0; i < 64; ++i) request.mutable_tokens()->add_ids(i);
  request.mutable_params()->set_max_tokens(64);
  return request;
}

// Keeps `window` calls of Submit under way until `stop`.
class Load {
 public:
  Load(v1::Inference::Stub& stub, int window, const std::atomic<bool>& stop)
      : stub_(stub), stop_(stop), under_way_(window) {
    for (int i = 0; i < window; ++i) Begin();
  }
  int64_t done() const { return done_; }
  void Join() const {
    while (under_way_ > 0) absl::SleepFor(absl::Milliseconds(1));
  }

 private:
  struct Call {
    grpc::ClientContext context;
    v1::SubmitResponse response;
  };
  void Begin() {
    auto call = std::make_shared<Call>();
    stub_.async()->Submit(&call->context, &request_, &call->response,
                          [this, call](const grpc::Status& status) {
                            if (status.ok()) ++done_;
                            if (stop_) {
                              --under_way_;
                            } else {
                              Begin();
                            }
                          });
  }

  v1::Inference::Stub& stub_;
  const std::atomic<bool>& stop_;
  const v1::GenerateRequest request_ = Request();
  std::atomic<int64_t> done_ = 0;
  std::atomic<int> under_way_;
};

void MeasureAdmissions(v1::Inference::Stub& stub) {
  for (const int window : {1, 16, 64, 256}) {
    std::atomic<bool> stop = false;
    Load load(stub, window, stop);
    absl::SleepFor(absl::Milliseconds(500));
    const int64_t before = load.done();
    const absl::Time start = absl::Now();
    absl::SleepFor(absl::Seconds(4));
    const double seconds = absl::ToDoubleSeconds(absl::Now() - start);
    const double rate = static_cast<double>(load.done() - before) / seconds;
    stop = true;
    load.Join();
    std::printf("%4d calls under way: %8.0f accepted/s\n", window, rate);
  }
}

// A rank that answers at once, so that all of the time is the coordinator's.
void MeasureFirstToken(v1::Inference::Stub& stub, const std::string& address) {
  FakeRank rank(address);
  rank.Attach();
  constexpr int kCalls = 1000;
  std::thread worker([&] {
    for (int i = 0; i < kCalls; ++i) {
      rank.SendTokens(rank.NextAssign(), 0, 1, v1::FINISH_REASON_LENGTH);
    }
  });
  std::vector<double> times;
  for (int i = 0; i < kCalls; ++i) {
    grpc::ClientContext context;
    const absl::Time start = absl::Now();
    const auto reader = stub.Generate(&context, Request());
    v1::GenerateResponse message;
    while (reader->Read(&message)) {
      if (message.token_ids_size() == 0) continue;
      times.push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
    }
    reader->Finish();
  }
  worker.join();
  std::sort(times.begin(), times.end());
  std::printf(
      "first token through client, coordinator, disk and rank: "
      "median %.2f ms, p99 %.2f ms (%d calls, one at a time)\n",
      times[times.size() / 2], times[times.size() * 99 / 100], kCalls);
}

int Main(const std::string& parent) {
  const std::string dir = parent + "/coordinator_bench";
  CoordinatorOptions options;
  options.listen = "127.0.0.1:0";
  options.log_file = "/dev/null";
  options.hub.queue.max_queued_requests = 10'000'000;
  options.hub.queue.max_queued_tokens = 1'000'000'000'000;
  for (const bool first_token : {true, false}) {
    std::filesystem::remove_all(dir);
    options.data_dir = dir;
    const auto coordinator = Coordinator::Start(options);
    if (!coordinator.ok()) {
      std::fprintf(stderr, "error: %s\n",
                   std::string(coordinator.status().message()).c_str());
      return 1;
    }
    const std::string& address = (*coordinator)->address();
    const auto stub = v1::Inference::NewStub(
        grpc::CreateChannel(address, grpc::InsecureChannelCredentials()));
    if (first_token) {
      MeasureFirstToken(*stub, address);
    } else {
      MeasureAdmissions(*stub);
    }
  }
  std::filesystem::remove_all(dir);
  return 0;
}

}  // namespace
}  // namespace portolan

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: coordinator_bench DIR\n");
    return 2;
  }
  return portolan::Main(argv[1]);
}
