#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <latch>
#include <string>
#include <utility>
#include <vector>

#include "cluster/coordinator/store_thread.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;

class StoreThreadTest : public ::testing::Test {
 protected:
  StoreThreadTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = std::filesystem::path(::testing::TempDir()) /
           (std::string("store_thread_") + info->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    auto store =
        RequestStore::Open({.path = (dir_ / "requests.sqlite").string()});
    thread_.emplace(*std::move(store), [](RequestStore&) { return false; });
  }
  ~StoreThreadTest() override { std::filesystem::remove_all(dir_); }

  static StoredRequest Request(int64_t seq, const char* id = "r",
                               const char* key = "") {
    StoredRequest stored;
    stored.queued.seq = seq;
    stored.id = id;
    stored.request.set_idempotency_key(key);
    stored.created = absl::UnixEpoch();
    return stored;
  }
  // Holds up the thread, so that what is posted meanwhile becomes one group.
  void Hold(std::latch& until) {
    thread_->Post({.durability = StoreThread::Durability::kRead,
                   .work =
                       [&until](RequestStore&) {
                         until.wait();
                         return absl::OkStatus();
                       },
                   .done = [](absl::Status) {}});
  }
  void Insert(int64_t seq, std::vector<std::string>& log,
              const char* id = "r") {
    thread_->Post({.durability = StoreThread::Durability::kDisk,
                   .work =
                       [seq, id](RequestStore& store) {
                         return store.Insert(Request(seq, id)).status();
                       },
                   .done =
                       [seq, &log](absl::Status status) {
                         log.push_back(std::to_string(seq) +
                                       (status.ok() ? " ok" : " failed"));
                       }});
  }

  std::filesystem::path dir_;
  std::optional<StoreThread> thread_;
};

TEST_F(StoreThreadTest, OneGroupIsKeptInOrder) {
  std::latch open(1);
  std::vector<std::string> log;
  Hold(open);
  for (int64_t seq = 1; seq <= 3; ++seq) Insert(seq, log);

  open.count_down();
  thread_->Stop();

  EXPECT_THAT(log, ElementsAre("1 ok", "2 ok", "3 ok"));
}

TEST_F(StoreThreadTest, OnlyThePieceThatCannotBeDoneFails) {
  std::latch open(1);
  std::vector<std::string> log;
  Hold(open);
  Insert(1, log);
  Insert(1, log, "other");  // another one with the same number
  Insert(2, log);

  open.count_down();
  thread_->Stop();

  EXPECT_THAT(log, ElementsAre("1 ok", "1 failed", "2 ok"));
}

// The commit of the work itself is on disk; that of the thread fails then, for
// there is no transaction any more, and all comes again.
TEST_F(StoreThreadTest, ACommitThatReportsAnErrorAfterAllLosesNothing) {
  for (const char* key : {"", "key"}) {
    const int64_t seq = *key == '\0' ? 1 : 2;
    int tries = 0;
    std::latch done(1);
    absl::Status inserted;
    std::optional<StoredRequest> existing;
    thread_->Post({.durability = StoreThread::Durability::kDisk,
                   .work = [&](RequestStore& store) -> absl::Status {
                     const auto found = store.Insert(Request(seq, "r", key));
                     if (!found.ok()) return found.status();
                     existing = *found;
                     return tries++ == 0 ? store.Commit() : absl::OkStatus();
                   },
                   .done =
                       [&](absl::Status status) {
                         inserted = std::move(status);
                         done.count_down();
                       }});
    done.wait();
    EXPECT_EQ(tries, 2);
    EXPECT_TRUE(inserted.ok()) << inserted;
    EXPECT_FALSE(existing.has_value()) << "it is its own rival";
  }
  thread_->Stop();
  thread_.reset();

  auto store =
      *RequestStore::Open({.path = (dir_ / "requests.sqlite").string()});
  EXPECT_EQ(store->Unfinished()->size(), 2u);
  EXPECT_EQ(store->Totals()->accepted, 2);
}

TEST_F(StoreThreadTest, TokensAreTriedAgainUntilTheDiskHasRoom) {
  std::vector<std::string> log;
  std::latch kept(2);
  std::latch has_room(1);
  const auto tokens = [&](const char* name) {
    thread_->Post({.durability = StoreThread::Durability::kProcess,
                   .never_fails = true,
                   .work = [&](RequestStore&) -> absl::Status {
                     if (has_room.try_wait()) return absl::OkStatus();
                     return absl::ResourceExhaustedError("full");
                   },
                   .done =
                       [&, name](absl::Status status) {
                         log.push_back(name + std::string(status.ok()
                                                              ? " ok"
                                                              : " failed"));
                         kept.count_down();
                       }});
  };
  std::latch read(1);
  tokens("first");
  Insert(1, log);
  tokens("second");
  thread_->Post(
      {.durability = StoreThread::Durability::kRead,
       .work = [](RequestStore& store) { return store.Find(1).status(); },
       .done =
           [&](absl::Status status) {
             log.push_back(status.ok() ? "read ok" : "read failed");
             read.count_down();
           }});

  read.wait();  // while nothing can be written
  has_room.count_down();
  kept.wait();
  Insert(2, log);
  thread_->Stop();

  EXPECT_THAT(
      log, ElementsAre("1 failed", "read ok", "first ok", "second ok", "2 ok"));
}

TEST_F(StoreThreadTest, WhatFailsBehindTokensThatWaitSaysWhy) {
  std::latch failed(1);
  absl::Status result;
  thread_->Post({.durability = StoreThread::Durability::kProcess,
                 .never_fails = true,
                 .work = [](RequestStore&) -> absl::Status {
                   return absl::InternalError("SQLite: disk I/O error");
                 },
                 .done = [](absl::Status) {}});
  thread_->Post({.durability = StoreThread::Durability::kDisk,
                 .work = [](RequestStore&) { return absl::OkStatus(); },
                 .done =
                     [&](absl::Status status) {
                       result = std::move(status);
                       failed.count_down();
                     }});
  failed.wait();

  EXPECT_TRUE(absl::IsUnavailable(result)) << result;
  EXPECT_NE(result.message().find("disk I/O error"), std::string::npos);
}

TEST_F(StoreThreadTest, WhatDoesNotPassIsToldOnceAndAFullDiskNever) {
  std::latch told(1);
  absl::Status why;
  int num_told = 0;
  int num_tries = 0;
  auto store = RequestStore::Open({.path = (dir_ / "other.sqlite").string()});
  StoreThread thread(
      *std::move(store), [](RequestStore&) { return false; },
      [&](const absl::Status& status) {
        why = status;
        if (++num_told == 1) told.count_down();
      },
      absl::ZeroDuration());
  thread.Post({.durability = StoreThread::Durability::kProcess,
               .never_fails = true,
               .work = [&](RequestStore&) -> absl::Status {
                 if (++num_tries < 100) {
                   return absl::ResourceExhaustedError("full");
                 }
                 return absl::DataLossError("malformed");
               },
               .done = [](absl::Status) {}});

  told.wait();
  thread.Stop();

  EXPECT_TRUE(absl::IsDataLoss(why)) << why;
  EXPECT_EQ(num_told, 1);
}

TEST_F(StoreThreadTest, AStopDoesNotWaitForTheDisk) {
  std::latch tried(1);
  absl::Status result;
  bool first = true;
  thread_->Post({.durability = StoreThread::Durability::kProcess,
                 .never_fails = true,
                 .work = [&](RequestStore&) -> absl::Status {
                   if (std::exchange(first, false)) tried.count_down();
                   return absl::ResourceExhaustedError("full");
                 },
                 .done = [&](absl::Status status) { result = status; }});

  tried.wait();
  thread_->Stop();

  EXPECT_TRUE(absl::IsResourceExhausted(result));
}

}  // namespace
}  // namespace portolan
