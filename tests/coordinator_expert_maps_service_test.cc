#include <chrono>
#include <cstdlib>
#include <filesystem>
#include <functional>
#include <future>
#include <map>
#include <memory>
#include <semaphore>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/server/expert_maps_service.h"
#include "cluster/coordinator/sqlite.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"
#include "proto/expert_map.grpc.pb.h"
#include "runtime/base/fp16.h"

namespace portolan {
namespace {

std::string Key(float x, float y) {
  std::string key;
  for (const float value : {x, y}) {
    const Fp16 half = ToFp16(value);
    key.append(reinterpret_cast<const char*>(&half), sizeof(half));
  }
  return key;
}

// The service behind a real server on loopback.
class Server {
 public:
  explicit Server(ExpertMapsService::Options options,
                  ExpertMapsService::Authorize authorize = nullptr) {
    service_ = ExpertMapsService::Create(std::move(options), notice_).value();
    service_->SetAuthorize(std::move(authorize));
    grpc::ServerBuilder builder;
    int port = 0;
    builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                             &port);
    builder.RegisterService(service_.get());
    server_ = builder.BuildAndStart();
    stub_ = v1::ExpertMaps::NewStub(grpc::CreateChannel(
        absl::StrCat("127.0.0.1:", port), grpc::InsecureChannelCredentials()));
  }
  ~Server() {
    service_->EndStreams();
    server_->Shutdown();
  }

  v1::ExpertMaps::Stub& stub() { return *stub_; }
  ExpertMapsService& service() { return *service_; }

  grpc::Status Append(const std::string& key, const std::string& map,
                      v1::AppendExpertMapsResponse* response = nullptr,
                      const std::string& fingerprint = "model") {
    grpc::ClientContext context;
    v1::AppendExpertMapsRequest request;
    request.mutable_store()->set_fingerprint(fingerprint);
    v1::ExpertMapRow* row = request.add_rows();
    row->set_key(key);
    row->set_map(map);
    v1::AppendExpertMapsResponse unused;
    return stub_->Append(&context, request,
                         response != nullptr ? response : &unused);
  }

 private:
  std::string notice_;
  std::unique_ptr<ExpertMapsService> service_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<v1::ExpertMaps::Stub> stub_;
};

// A stream of changes and the replica that they make.
class Follower {
 public:
  Follower(Server& server, uint64_t from_version) {
    v1::FollowExpertMapsRequest request;
    request.mutable_store()->set_fingerprint("model");
    request.set_from_version(from_version);
    reader_ = server.stub().Follow(&context_, request);
  }

  // Reads up to a version that is whole; false at the end of the stream.
  bool Sync() {
    v1::ExpertMapUpdate update;
    while (reader_->Read(&update)) {
      ++messages_;
      if (update.snapshot_begin()) {
        rows_.clear();
        ++snapshots_;
      }
      for (const uint64_t id : update.removed_ids()) rows_.erase(id);
      for (const v1::ExpertMapRow& row : update.added()) {
        rows_[row.id()] = row.map();
      }
      version_ = update.version();
      if (update.complete()) return true;
    }
    return false;
  }
  std::set<std::string> maps() const {
    std::set<std::string> maps;
    for (const auto& [id, map] : rows_) maps.insert(map);
    return maps;
  }
  uint64_t version() const { return version_; }
  int snapshots() const { return snapshots_; }
  int messages() const { return messages_; }
  grpc::Status Finish() { return reader_->Finish(); }
  void Cancel() { context_.TryCancel(); }

 private:
  grpc::ClientContext context_;
  std::unique_ptr<grpc::ClientReader<v1::ExpertMapUpdate>> reader_;
  std::map<uint64_t, std::string> rows_;
  uint64_t version_ = 0;
  int snapshots_ = 0;
  int messages_ = 0;
};

TEST(ExpertMapsServiceTest, AFollowerGetsTheWholeAndThenEveryChange) {
  Server server({});
  ASSERT_TRUE(server.Append(Key(1, 0), "a").ok());
  Follower follower(server, 0);
  ASSERT_TRUE(follower.Sync());
  EXPECT_EQ(follower.maps(), (std::set<std::string>{"a"}));

  ASSERT_TRUE(server.Append(Key(0, 1), "b").ok());
  ASSERT_TRUE(follower.Sync());

  EXPECT_EQ(follower.maps(), (std::set<std::string>{"a", "b"}));
  EXPECT_EQ(follower.snapshots(), 1);
}

TEST(ExpertMapsServiceTest, AnEmptyStoreIsSaidToBeWholeAtOnce) {
  Server server({});
  Follower follower(server, 0);

  EXPECT_TRUE(follower.Sync());
  EXPECT_TRUE(follower.maps().empty());
}

TEST(ExpertMapsServiceTest, OneWhoComesBackGetsOnlyWhatIsNew) {
  Server server({});
  ASSERT_TRUE(server.Append(Key(1, 0), "a").ok());
  Follower first(server, 0);
  ASSERT_TRUE(first.Sync());
  ASSERT_TRUE(server.Append(Key(0, 1), "b").ok());

  Follower second(server, first.version());
  ASSERT_TRUE(second.Sync());

  EXPECT_EQ(second.maps(), (std::set<std::string>{"b"}));
  EXPECT_EQ(second.snapshots(), 0);
}

TEST(ExpertMapsServiceTest, ALargeSnapshotComesInPieces) {
  Server server({});
  for (int i = 0; i < 6; ++i) {
    ASSERT_TRUE(server
                    .Append(Key(1, static_cast<float>(i)),
                            std::string(600'000, static_cast<char>('a' + i)))
                    .ok());
  }

  Follower follower(server, 0);
  ASSERT_TRUE(follower.Sync());

  EXPECT_EQ(follower.maps().size(), 6u);
  EXPECT_GE(follower.messages(), 3);
}

TEST(ExpertMapsServiceTest, RowsOutliveTheServerAndVersionsOnlyRise) {
  const std::string path =
      (std::filesystem::path(testing::TempDir()) / "outlive.db").string();
  std::filesystem::remove(path);
  v1::AppendExpertMapsResponse before, after;
  {
    Server server({.database = path});
    ASSERT_TRUE(server.Append(Key(1, 0), "a", &before).ok());
  }

  Server server({.database = path});
  Follower follower(server, before.version());
  ASSERT_TRUE(follower.Sync());
  ASSERT_TRUE(server.Append(Key(0, 1), "b", &after).ok());

  EXPECT_EQ(follower.maps(), (std::set<std::string>{"a"}));
  EXPECT_GT(after.version(), before.version());
}

TEST(ExpertMapsServiceTest, ALoweredCapacityHoldsFromTheStartOnDiskToo) {
  const std::string path =
      (std::filesystem::path(testing::TempDir()) / "lowered.db").string();
  std::filesystem::remove(path);
  {
    Server server({.database = path});
    for (int i = 0; i < 5; ++i) {
      ASSERT_TRUE(
          server.Append(Key(1, static_cast<float>(i)), absl::StrCat(i)).ok());
    }
  }
  {
    Server server({.store = {.max_rows = 2}, .database = path});
    Follower follower(server, 0);
    ASSERT_TRUE(follower.Sync());
    EXPECT_EQ(follower.maps(), (std::set<std::string>{"3", "4"}));
    EXPECT_EQ(server.service().stats().stores.at(0).rows, 2u);
  }

  std::string notice;
  const auto kept =
      SharedMapsDatabase::Open(path, notice).value()->Load().value();
  EXPECT_EQ(kept.size(), 2u);
  EXPECT_EQ(notice, "");
}

TEST(ExpertMapsServiceTest, BadCallsAreRefusedByField) {
  Server server({.max_stores = 1});
  ASSERT_TRUE(server.Append(Key(1, 0), "a").ok());

  const grpc::Status nameless = server.Append(Key(1, 0), "a", nullptr, "");
  const grpc::Status odd = server.Append("abc", "a");
  const grpc::Status other = server.Append(Key(1, 0), "a", nullptr, "other");

  EXPECT_EQ(nameless.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(nameless.error_message().find("store.fingerprint"),
            std::string::npos);
  EXPECT_EQ(odd.error_code(), grpc::StatusCode::INVALID_ARGUMENT);
  EXPECT_NE(odd.error_message().find("rows.key"), std::string::npos);
  EXPECT_EQ(other.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  for (const grpc::Status& status : {nameless, odd}) {
    EXPECT_NE(status.error_details().find("google.rpc.BadRequest"),
              std::string::npos)
        << status.error_message();
  }
}

TEST(ExpertMapsServiceTest, AFieldThatIsNotKnownIsRefusedOnBothCalls) {
  Server server({});
  const auto add_unknown = [](google::protobuf::Message& message) {
    message.GetReflection()->MutableUnknownFields(&message)->AddVarint(99, 1);
  };
  v1::AppendExpertMapsRequest append;
  append.mutable_store()->set_fingerprint("model");
  add_unknown(*append.add_rows());
  grpc::ClientContext context;
  v1::AppendExpertMapsResponse response;
  const grpc::Status refused =
      server.stub().Append(&context, append, &response);
  EXPECT_EQ(refused.error_code(), grpc::StatusCode::UNIMPLEMENTED);
  EXPECT_NE(refused.error_message().find("rows.#99"), std::string::npos);

  v1::FollowExpertMapsRequest follow;
  follow.mutable_store()->set_fingerprint("model");
  add_unknown(follow);
  grpc::ClientContext follower;
  const auto stream = server.stub().Follow(&follower, follow);
  v1::ExpertMapUpdate update;
  EXPECT_FALSE(stream->Read(&update));
  EXPECT_EQ(stream->Finish().error_code(), grpc::StatusCode::UNIMPLEMENTED);
}

TEST(ExpertMapsServiceTest, WhoMayNotIsRefusedOnBothCalls) {
  Server server({}, [](grpc::ServerContextBase&, const grpc::ByteBuffer&) {
    return grpc::Status(grpc::StatusCode::UNAUTHENTICATED, "no token");
  });

  Follower follower(server, 0);

  EXPECT_FALSE(follower.Sync());
  EXPECT_EQ(follower.Finish().error_code(), grpc::StatusCode::UNAUTHENTICATED);
  EXPECT_EQ(server.Append(Key(1, 0), "a").error_code(),
            grpc::StatusCode::UNAUTHENTICATED);
}

TEST(ExpertMapsServiceTest, TheEndOfTheServerEndsTheStreams) {
  auto server = std::make_unique<Server>(ExpertMapsService::Options{});
  Follower follower(*server, 0);
  ASSERT_TRUE(follower.Sync());

  server->service().EndStreams();

  EXPECT_FALSE(follower.Sync());
  EXPECT_EQ(follower.Finish().error_code(), grpc::StatusCode::UNAVAILABLE);
}

TEST(ExpertMapsServiceTest, FollowersThatGoLeaveNothingBehind) {
  Server server({});
  for (int i = 0; i < 20; ++i) {
    Follower follower(server, 0);
    ASSERT_TRUE(follower.Sync());
    follower.Cancel();
    EXPECT_FALSE(follower.Finish().ok());
    ASSERT_TRUE(server.Append(Key(1, static_cast<float>(i)), "a").ok());
  }
  Follower last(server, 0);
  ASSERT_TRUE(last.Sync());

  EXPECT_EQ(last.maps().size(), 1u);
  EXPECT_EQ(server.service().stats().stores.at(0).rows, 20u);
}

TEST(ExpertMapsServiceTest, StatisticsDoNotWaitForASearch) {
  ExpertMapsService* service = nullptr;
  std::vector<uint64_t> rows_seen;
  ExpertMapsService::Options options;
  options.while_searching = [&] {
    std::future<ExpertMapsService::Stats> stats =
        std::async(std::launch::async, [&] { return service->stats(); });
    // Else they would wait for each other for ever.
    if (stats.wait_for(std::chrono::seconds(30)) != std::future_status::ready) {
      std::abort();
    }
    const auto stores = stats.get().stores;
    rows_seen.push_back(stores.empty() ? 0 : stores.front().rows);
  };
  Server server(options);
  service = &server.service();

  ASSERT_TRUE(server.Append(Key(1, 0), "a").ok());
  ASSERT_TRUE(server.Append(Key(0, 1), "b").ok());

  EXPECT_EQ(rows_seen, (std::vector<uint64_t>{0, 1}));
  EXPECT_EQ(service->stats().stores.front().rows, 2u);
}

// Holds the thread that writes: before each write it waits to be let on.
class WriterGate {
 public:
  void Wait() {
    arrived_.release();
    go_on_.acquire();
  }
  std::function<void()> hook() {
    return [this] { Wait(); };
  }
  // Returns once the writer is before its next write.
  void AwaitWriter() { arrived_.acquire(); }
  void LetOn() { go_on_.release(); }
  void LetOnForGood() { go_on_.release(1000); }

 private:
  std::counting_semaphore<> arrived_{0};
  std::counting_semaphore<> go_on_{0};
};

std::string NewDatabase(const std::string& name) {
  const std::string path =
      (std::filesystem::path(testing::TempDir()) / name).string();
  std::filesystem::remove(path);
  return path;
}

TEST(ExpertMapsServiceTest, RowsAreRefusedWhileTooManyBytesWaitForTheDisk) {
  WriterGate gate;
  Server server({.database = NewDatabase("pending.db"),
                 .max_pending_bytes = 10'000,
                 .before_writing = gate.hook()});
  ASSERT_TRUE(server.Append(Key(1, 0), std::string(6'000, 'a')).ok());
  gate.AwaitWriter();

  const grpc::Status large = server.Append(Key(0, 1), std::string(6'000, 'b'));
  const grpc::Status small = server.Append(Key(1, 1), "c");

  EXPECT_EQ(large.error_code(), grpc::StatusCode::RESOURCE_EXHAUSTED);
  EXPECT_NE(large.error_message().find("limit of 9.8 KiB"), std::string::npos)
      << large.error_message();
  EXPECT_TRUE(small.ok()) << small.error_message();
  gate.LetOnForGood();
}

TEST(ExpertMapsServiceTest, RowsAreTakenAgainOnceOthersAreOnDisk) {
  WriterGate gate;
  const std::string path = NewDatabase("written.db");
  {
    Server server({.database = path,
                   .max_pending_bytes = 10'000,
                   .before_writing = gate.hook()});
    ASSERT_TRUE(server.Append(Key(1, 0), std::string(6'000, 'a')).ok());
    ASSERT_TRUE(server.Append(Key(1, 1), "b").ok());
    gate.AwaitWriter();
    gate.LetOn();
    gate.AwaitWriter();  // the first is written

    const grpc::Status later =
        server.Append(Key(0, 1), std::string(6'000, 'c'));

    EXPECT_TRUE(later.ok()) << later.error_message();
    gate.LetOnForGood();
  }
  std::string notice;
  EXPECT_EQ(SharedMapsDatabase::Open(path, notice).value()->Load()->size(), 3u);
}

TEST(ExpertMapsServiceTest, RowsThatCouldNotBeWrittenMakeRoomForOthers) {
  WriterGate gate;
  const std::string path = NewDatabase("unwritten.db");
  Server server({.database = path,
                 .max_pending_bytes = 10'000,
                 .before_writing = gate.hook()});
  auto other = SqliteDatabase::Open(path).value();
  ASSERT_TRUE(other->Script("DROP TABLE expert_maps").ok());
  ASSERT_TRUE(server.Append(Key(1, 0), std::string(6'000, 'a')).ok());
  ASSERT_TRUE(server.Append(Key(1, 1), "b").ok());
  gate.AwaitWriter();
  gate.LetOn();
  gate.AwaitWriter();  // the first has failed

  const grpc::Status later = server.Append(Key(0, 1), std::string(6'000, 'c'));

  EXPECT_TRUE(later.ok()) << later.error_message();
  gate.LetOnForGood();
}

TEST(ExpertMapsServiceTest, WithoutADatabaseNothingWaitsSoNothingIsRefused) {
  Server server({.max_pending_bytes = 1});

  EXPECT_TRUE(server.Append(Key(1, 0), "a").ok());
}

}  // namespace
}  // namespace portolan
