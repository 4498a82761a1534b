// The coordinator as a process that is killed at any moment: what was accepted
// ends, and a client that comes back gets each token once and in order.

#include <fcntl.h>
#include <gmock/gmock.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <csignal>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "proto/inference.grpc.pb.h"
#include "tests/coordinator_fake_rank.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;

std::string ReadFile(const std::filesystem::path& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

// `portolan coordinator` as a child process.
class CoordinatorProcess {
 public:
  explicit CoordinatorProcess(std::filesystem::path dir)
      : dir_(std::move(dir)) {}
  ~CoordinatorProcess() {
    if (pid_ > 0) Kill();
  }

  // Starts it and waits until it listens; again on the same port.
  void Start(std::vector<std::string> flags = {}) {
    const std::filesystem::path endpoint = dir_ / "endpoint.json";
    std::filesystem::remove(endpoint);
    Spawn(std::move(flags));
    while (!std::filesystem::exists(endpoint)) {
      ASSERT_EQ(waitpid(pid_, nullptr, WNOHANG), 0) << Stderr();
      absl::SleepFor(absl::Milliseconds(2));
    }
    address_ = nlohmann::json::parse(ReadFile(endpoint))["address"];
  }
  // Starts it and returns its exit code.
  int Run(std::vector<std::string> flags = {}) {
    Spawn(std::move(flags));
    return Wait();
  }
  void Kill() {
    kill(pid_, SIGKILL);
    Wait();
  }
  void Signal(int signal) { kill(pid_, signal); }
  int Wait() {
    int status = 0;
    waitpid(pid_, &status, 0);
    pid_ = 0;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  }
  pid_t pid() const { return pid_; }
  const std::string& address() const { return address_; }
  std::string Stderr() const { return ReadFile(Log()); }

 private:
  std::string Log() const { return dir_.string() + ".stderr"; }

  void Spawn(std::vector<std::string> flags) {
    std::vector<std::string> words = {PORTOLAN_PROGRAM, "coordinator",
                                      "--data-dir", dir_.string()};
    if (flags.empty() || flags[0] != "--listen") {
      words.push_back("--listen");
      words.push_back(address_.empty() ? "127.0.0.1:0" : address_);
    }
    words.insert(words.end(), flags.begin(), flags.end());
    std::vector<char*> arguments;
    for (std::string& word : words) arguments.push_back(word.data());
    arguments.push_back(nullptr);
    pid_ = fork();
    ASSERT_GE(pid_, 0);
    if (pid_ > 0) return;
    const int log = open(Log().c_str(), O_WRONLY | O_CREAT | O_APPEND, 0644);
    dup2(log, STDERR_FILENO);
    execv(arguments[0], arguments.data());
    _exit(127);
  }

  const std::filesystem::path dir_;
  std::string address_;
  pid_t pid_ = 0;
};

// Token i of a request with this seed, so that a mix-up would show.
int32_t TokenOf(uint64_t seed, int64_t i) {
  return static_cast<int32_t>((seed * 1'000'003 + static_cast<uint64_t>(i)) %
                              1'000'000);
}

// A rank that keeps the rules of control.proto: it generates one token of each
// request at a time, holds what is not acknowledged, and comes back after the
// stream broke. Die() is the death of the process: it forgets everything.
class LoyalRank {
 public:
  explicit LoyalRank(std::string address)
      : address_(std::move(address)), thread_([this] { Loop(); }) {}
  ~LoyalRank() {
    stopping_ = true;
    BreakStream();
    thread_.join();
  }
  void Die() {
    die_ = true;
    BreakStream();
  }

 private:
  struct Held {
    v1::Assign assign;
    int64_t acked = 0;
    int64_t made = 0;  // tokens generated, the prefix included
    int64_t sent = 0;
  };

  void BreakStream() {
    MutexLock lock(mu_);
    if (rank_ != nullptr) rank_->Break();
  }
  void Loop() {
    while (!stopping_) {
      if (die_.exchange(false)) {
        held_.clear();
        ++incarnation_;
      }
      auto rank = std::make_shared<FakeRank>(
          address_, grpc::InsecureChannelCredentials(), /*waits=*/true);
      {
        MutexLock lock(mu_);
        rank_ = rank;
        if (stopping_) return;
      }
      v1::RankMessage message;
      *message.mutable_register_() = Registration();
      rank->Send(message);
      while (true) {
        const auto messages = rank->TakeAll();
        if (messages.empty()) break;
        for (const v1::CoordinatorMessage& came : messages) Handle(came);
        if (!SendTokens(*rank)) break;
      }
    }
  }
  v1::Register Registration() {
    v1::Register registration = FakeRank::Registration(0, incarnation_);
    registration.mutable_capacity()->set_max_sequences(16);
    for (const auto& [id, held] : held_) {
      v1::RunningRequest& running = *registration.add_running();
      running.set_request_id(id);
      running.set_attempt(held.assign.attempt());
      running.set_held_from(static_cast<uint32_t>(held.acked));
      running.set_next_offset(static_cast<uint32_t>(held.made));
    }
    return registration;
  }
  void Handle(const v1::CoordinatorMessage& message) {
    switch (message.kind_case()) {
      case v1::CoordinatorMessage::kAccepted:
        for (const v1::Resume& resume : message.accepted().resume()) {
          if (resume.drop()) {
            held_.erase(resume.request_id());
          } else {
            Held& held = held_[resume.request_id()];
            held.acked = held.sent = resume.next_offset();
          }
        }
        break;
      case v1::CoordinatorMessage::kAssign: {
        const v1::Assign& assign = message.assign();
        const int64_t prefix = assign.prefix_size();
        for (int64_t i = 0; i < prefix; ++i) {
          EXPECT_EQ(assign.prefix(static_cast<int>(i)),
                    TokenOf(assign.params().seed(), i));
        }
        held_[assign.request_id()] = {assign, prefix, prefix, prefix};
        break;
      }
      case v1::CoordinatorMessage::kAck:
        for (const v1::Durable& durable : message.ack().durable()) {
          const auto held = held_.find(durable.request_id());
          if (held == held_.end()) continue;
          held->second.acked = durable.next_offset();
          if (durable.finished()) held_.erase(held);
        }
        break;
      case v1::CoordinatorMessage::kResend:
        held_[message.resend().request_id()].sent =
            message.resend().next_offset();
        break;
      case v1::CoordinatorMessage::kCancel:
        held_.erase(message.cancel().request_id());
        break;
      default:
        break;
    }
  }
  // At most a few unacknowledged tokens of each request, sent one at a time.
  bool SendTokens(FakeRank& rank) {
    for (auto& [id, held] : held_) {
      const int64_t max = held.assign.params().max_tokens();
      while (held.sent < max && held.sent < held.acked + 4) {
        v1::RankMessage message;
        v1::TokenDelta& delta = *message.mutable_tokens()->add_deltas();
        delta.set_request_id(id);
        delta.set_attempt(held.assign.attempt());
        delta.set_offset(static_cast<uint32_t>(held.sent));
        delta.add_token_ids(TokenOf(held.assign.params().seed(), held.sent));
        delta.add_texts(absl::StrCat(held.sent, " "));
        ++held.sent;
        held.made = std::max(held.made, held.sent);
        if (held.sent == max) {
          delta.mutable_finish()->set_reason(v1::FINISH_REASON_LENGTH);
        }
        if (!rank.Send(message)) return false;
      }
    }
    return true;
  }

  const std::string address_;
  std::atomic<bool> stopping_ = false;
  std::atomic<bool> die_ = false;
  uint64_t incarnation_ = 1;
  std::map<std::string, Held> held_;
  Mutex mu_;
  std::shared_ptr<FakeRank> rank_ ABSL_GUARDED_BY(mu_);
  std::thread thread_;
};

class CoordinatorProcessTest : public ::testing::Test {
 protected:
  CoordinatorProcessTest()
      : dir_(std::filesystem::path(::testing::TempDir()) /
             (std::string("process_") +
              ::testing::UnitTest::GetInstance()->current_test_info()->name())),
        process_(Fresh(dir_)) {}
  ~CoordinatorProcessTest() override {
    std::filesystem::remove_all(dir_);
    std::filesystem::remove(dir_.string() + ".stderr");
  }

  static std::filesystem::path Fresh(const std::filesystem::path& dir) {
    std::filesystem::remove_all(dir);
    std::filesystem::remove(dir.string() + ".stderr");
    std::filesystem::create_directories(dir);
    return dir;
  }
  std::unique_ptr<v1::Inference::Stub> NewClient() {
    grpc::ChannelArguments arguments;
    arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 100);
    return v1::Inference::NewStub(grpc::CreateCustomChannel(
        process_.address(), grpc::InsecureChannelCredentials(), arguments));
  }
  static v1::GenerateRequest Request(uint32_t max_tokens,
                                     const std::string& key) {
    v1::GenerateRequest request;
    request.set_text("prompt");
    request.mutable_params()->set_max_tokens(max_tokens);
    request.set_idempotency_key(key);
    return request;
  }
  // Asks again, with the same key, until there is an answer.
  static v1::SubmitResponse Submit(v1::Inference::Stub& client,
                                   const v1::GenerateRequest& request) {
    v1::SubmitResponse response;
    grpc::Status status;
    do {
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      status = client.Submit(&context, request, &response);
    } while (status.error_code() == grpc::StatusCode::UNAVAILABLE);
    EXPECT_TRUE(status.ok()) << status.error_message();
    return response;
  }

  const std::filesystem::path dir_;
  CoordinatorProcess process_;
};

// A client that follows one request to its end, whatever breaks.
class Follower {
 public:
  Follower(std::unique_ptr<v1::Inference::Stub> client,
           v1::SubmitResponse request, std::atomic<int64_t>& total)
      : client_(std::move(client)),
        request_(std::move(request)),
        total_(total),
        thread_([this] { Loop(); }) {}
  void Join() { thread_.join(); }

  std::vector<int32_t> tokens;
  std::string text;
  v1::Finish finish;
  uint64_t seed() const { return request_.seed(); }

 private:
  void Loop() {
    while (!finish.has_usage()) {
      grpc::ClientContext context;
      context.set_wait_for_ready(true);
      v1::WatchRequest watch;
      watch.set_request_id(request_.request_id());
      watch.set_from_offset(static_cast<uint32_t>(tokens.size()));
      const auto reader = client_->Watch(&context, watch);
      v1::GenerateResponse message;
      while (reader->Read(&message)) {
        EXPECT_EQ(message.offset(), tokens.size());
        tokens.insert(tokens.end(), message.token_ids().begin(),
                      message.token_ids().end());
        text += message.text();
        total_ += message.token_ids_size();
        if (message.has_finish()) finish = message.finish();
      }
      const grpc::Status status = reader->Finish();
      if (status.ok() || status.error_code() == grpc::StatusCode::UNAVAILABLE) {
        continue;
      }
      ADD_FAILURE() << status.error_message();
      return;
    }
  }

  const std::unique_ptr<v1::Inference::Stub> client_;
  const v1::SubmitResponse request_;
  std::atomic<int64_t>& total_;
  std::thread thread_;
};

TEST_F(CoordinatorProcessTest, KilledAtAnyMomentItLosesAndDoublesNothing) {
  constexpr int kRequests = 6;
  constexpr int kTokens = 400;
  constexpr int kKills = 12;
  const std::vector<std::string> flags = {"--reattach", "20s", "--max-attempts",
                                          "100"};
  process_.Start(flags);
  LoyalRank rank(process_.address());
  std::atomic<int64_t> total = 0;
  std::vector<std::unique_ptr<Follower>> followers;
  const auto client = NewClient();
  for (int i = 0; i < kRequests; ++i) {
    followers.push_back(std::make_unique<Follower>(
        NewClient(), Submit(*client, Request(kTokens, absl::StrCat("k", i))),
        total));
  }

  std::mt19937 random(1);
  const int64_t step = kRequests * kTokens / (kKills + 2);
  for (int kill = 0; kill < kKills; ++kill) {
    const int64_t until = total + 1 + random() % static_cast<uint64_t>(step);
    while (total < until) absl::SleepFor(absl::Milliseconds(1));
    if (kill % 3 == 2) rank.Die();
    process_.Kill();
    process_.Start(flags);
    const auto again = Submit(*client, Request(kTokens, "k0"));
    EXPECT_TRUE(again.existed());
  }

  for (const auto& follower : followers) {
    follower->Join();
    ASSERT_EQ(follower->tokens.size(), kTokens);
    std::string text;
    for (int i = 0; i < kTokens; ++i) {
      ASSERT_EQ(follower->tokens[i], TokenOf(follower->seed(), i)) << i;
      absl::StrAppend(&text, i, " ");
    }
    EXPECT_EQ(follower->text, text);
    EXPECT_EQ(follower->finish.reason(), v1::FINISH_REASON_LENGTH);
  }
}

TEST_F(CoordinatorProcessTest, ASecondProcessOnTheSameDirectoryIsNamed) {
  process_.Start();
  CoordinatorProcess second(dir_);

  EXPECT_EQ(second.Run(), 1);
  EXPECT_THAT(second.Stderr(), HasSubstr("is in use by the coordinator of"));
}

TEST_F(CoordinatorProcessTest, SigtermWithNothingToDoEndsCleanly) {
  process_.Start();
  process_.Signal(SIGTERM);
  EXPECT_EQ(process_.Wait(), 0);
}

TEST_F(CoordinatorProcessTest, ASecondSignalEndsAtOnce) {
  process_.Start({"--grace", "600s"});
  FakeRank rank(process_.address());
  rank.Attach();
  Submit(*NewClient(), Request(100, ""));
  rank.NextAssign();

  process_.Signal(SIGTERM);
  ASSERT_TRUE(rank.Next(v1::CoordinatorMessage::kDrain).has_value());
  process_.Signal(SIGTERM);

  EXPECT_EQ(process_.Wait(), 75);
}

// Files that may not grow stand for a disk with errors.
TEST_F(CoordinatorProcessTest, ADatabaseThatTakesNoWritesForGoodEndsIt) {
  const auto before = std::signal(SIGXFSZ, SIG_IGN);  // for the child
  process_.Start();
  std::signal(SIGXFSZ, before);
  FakeRank rank(process_.address());
  rank.Attach();
  Submit(*NewClient(), Request(100, ""));
  const v1::Assign assign = rank.NextAssign();
  const rlim_t size = std::filesystem::file_size(dir_ / "requests.sqlite-wal");
  const rlimit limit = {.rlim_cur = size, .rlim_max = size};
  ASSERT_EQ(prlimit(process_.pid(), RLIMIT_FSIZE, &limit, nullptr), 0);

  rank.SendTokens(assign, 0, 3);

  EXPECT_EQ(process_.Wait(), 1);
  EXPECT_THAT(process_.Stderr(), HasSubstr("takes no writes, for good"));
}

TEST_F(CoordinatorProcessTest, AnOpenDoorIsRefused) {
  std::filesystem::remove_all(dir_);
  CoordinatorProcess open(dir_);
  EXPECT_EQ(open.Run({"--listen", "0.0.0.0:0"}), 1);
  EXPECT_THAT(open.Stderr(), HasSubstr("--insecure"));
}

// A real disk that is full, of the size of a thimble.
TEST_F(CoordinatorProcessTest, AFullDiskRefusesNewRequestsAndEndsRunningOnes) {
  if (mount("tmpfs", dir_.c_str(), "tmpfs", 0, "size=24m") != 0) {
    GTEST_SKIP() << "needs the right to mount a tmpfs";
  }
  process_.Start({"--min-free-disk", "4MiB"});
  FakeRank rank(process_.address());
  rank.Attach();
  const auto client = NewClient();
  const v1::SubmitResponse running = Submit(*client, Request(100, "running"));
  const v1::Assign assign = rank.NextAssign();
  rank.SendTokens(assign, 0, 10);

  grpc::Status status;
  v1::GenerateRequest big = Request(1, "");
  big.set_text(std::string(1 << 20, 'x'));
  for (int i = 0; status.ok() && i < 100; ++i) {
    grpc::ClientContext context;
    v1::SubmitResponse response;
    status = client->Submit(&context, big, &response);
  }
  EXPECT_EQ(status.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_THAT(status.error_message(), HasSubstr("disk"));
  for (int first = 10; first < 90; first += 10) {
    rank.SendTokens(assign, first, 10);
  }
  rank.SendTokens(assign, 90, 10, v1::FINISH_REASON_LENGTH);
  std::atomic<int64_t> total = 0;
  Follower follower(NewClient(), running, total);
  follower.Join();

  EXPECT_EQ(follower.tokens.size(), 100u);
  EXPECT_EQ(follower.finish.reason(), v1::FINISH_REASON_LENGTH);
  process_.Kill();
  umount(dir_.c_str());
}

}  // namespace
}  // namespace portolan
