#include <gmock/gmock.h>
#include <grpcpp/grpcpp.h>
#include <gtest/gtest.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "proto/expert_map.grpc.pb.h"
#include "runtime/agent/history_link.h"
#include "runtime/base/mutex.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;

// Answers each Follow of the store of sequences with the next of some updates;
// then it stays silent.
class ScriptedMaps final : public v1::ExpertMaps::Service {
 public:
  explicit ScriptedMaps(std::vector<v1::ExpertMapUpdate> updates)
      : updates_(std::move(updates)) {}

  grpc::Status Follow(
      grpc::ServerContext* context, const v1::FollowExpertMapsRequest* request,
      grpc::ServerWriter<v1::ExpertMapUpdate>* writer) override {
    const bool scripted = request->store().format() ==
                          static_cast<uint32_t>(HistoryFormat::kSequence);
    MutexLock lock(mu_);
    if (scripted && next_ < updates_.size()) {
      writer->Write(updates_[next_++]);
      return grpc::Status::OK;
    }
    done_ = done_ || scripted;
    changed_.NotifyAll();
    while (!context->IsCancelled()) {
      changed_.WaitFor(mu_, absl::Milliseconds(20));
    }
    return grpc::Status::CANCELLED;
  }
  void WaitUntilAllIsTaken() {
    MutexLock lock(mu_);
    while (!done_) changed_.Wait(mu_);
  }

 private:
  const std::vector<v1::ExpertMapUpdate> updates_;
  Mutex mu_;
  CondVar changed_;
  size_t next_ ABSL_GUARDED_BY(mu_) = 0;
  bool done_ ABSL_GUARDED_BY(mu_) = false;
};

v1::ExpertMapUpdate Snapshot(uint64_t version,
                             const std::vector<uint64_t>& ids) {
  v1::ExpertMapUpdate update;
  update.set_version(version);
  update.set_snapshot_begin(true);
  update.set_complete(true);
  for (const uint64_t id : ids) {
    v1::ExpertMapRow& row = *update.add_added();
    row.set_id(id);
    row.set_key(std::to_string(version) + "/" + std::to_string(id));
    row.set_map("map");
  }
  return update;
}

// The keys of the rows that a link brings.
std::vector<std::string> Followed(std::vector<v1::ExpertMapUpdate> updates) {
  ScriptedMaps maps(std::move(updates));
  int port = 0;
  grpc::ServerBuilder builder;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.RegisterService(&maps);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  HistoryMailbox mailbox({});
  {
    CoordinatorAddress address;
    address.address = "127.0.0.1:" + std::to_string(port);
    HistoryLink link(address,
                     {.fingerprint = "f00d", .retry = absl::Milliseconds(1)},
                     mailbox);
    maps.WaitUntilAllIsTaken();
  }
  server->Shutdown();
  std::vector<std::string> keys;
  for (const HistoryRow& row : mailbox.TakeIncoming(100)) {
    keys.push_back(row.key);
  }
  return keys;
}

TEST(HistoryLinkTest, ASecondSnapshotBringsOnlyWhatIsNewer) {
  EXPECT_THAT(Followed({Snapshot(5, {1, 2}), Snapshot(7, {2, 3})}),
              ElementsAre("5/1", "5/2", "7/3"));
}

TEST(HistoryLinkTest, AHistoryThatBeganAnewIsTakenWhole) {
  EXPECT_THAT(Followed({Snapshot(5, {1, 2, 3}), Snapshot(2, {1, 2})}),
              ElementsAre("5/1", "5/2", "5/3", "2/1", "2/2"));
}

}  // namespace
}  // namespace portolan
