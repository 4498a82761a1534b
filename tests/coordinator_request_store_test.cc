#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <utility>
#include <vector>

#include "cluster/coordinator/request_store.h"
#include "cluster/coordinator/store_schema.h"

namespace portolan {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

class RequestStoreTest : public ::testing::Test {
 protected:
  RequestStoreTest() {
    const auto* info = ::testing::UnitTest::GetInstance()->current_test_info();
    dir_ = std::filesystem::path(::testing::TempDir()) /
           (std::string("request_store_") + info->name());
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
    options_.path = (dir_ / "requests.sqlite").string();
  }
  ~RequestStoreTest() override {
    store_.reset();
    std::filesystem::remove_all(dir_);
  }

  void Open() {
    store_.reset();
    auto opened = RequestStore::Open(options_);
    ASSERT_TRUE(opened.ok()) << opened.status();
    store_ = *std::move(opened);
  }
  StoredRequest Request(int64_t seq, const std::string& key = "") {
    StoredRequest stored;
    stored.queued.seq = seq;
    stored.queued.client = "ann";
    stored.queued.model = "tiny";
    stored.queued.deadline = now_ + absl::Seconds(60);
    stored.id = "r" + std::to_string(seq);
    stored.request.set_text("prompt");
    stored.request.set_idempotency_key(key);
    stored.seed = 0xfedcba9876543210;
    stored.created = now_;
    stored.x_request_id = "x";
    return stored;
  }
  // By another connection; the store is closed.
  void Damage(const std::string& sql) {
    store_.reset();
    auto db = SqliteDatabase::Open(options_.path);
    ASSERT_TRUE(db.ok());
    ASSERT_TRUE((*db)->Script(sql).ok());
  }
  void Add(const StoredRequest& stored) {
    ASSERT_TRUE(store_->Begin(true).ok());
    const auto existing = store_->Insert(stored);
    ASSERT_TRUE(existing.ok()) << existing.status();
    EXPECT_FALSE(existing->has_value());
    ASSERT_TRUE(store_->Commit().ok());
  }
  static v1::TokenDelta Delta(uint32_t offset, std::vector<int32_t> ids) {
    v1::TokenDelta delta;
    delta.set_offset(offset);
    for (const int32_t id : ids) {
      delta.add_token_ids(id);
      delta.add_texts("t");
    }
    return delta;
  }
  void End(int64_t seq, absl::Time when) {
    v1::Finish finish;
    finish.set_reason(v1::FINISH_REASON_STOP);
    ASSERT_TRUE(store_->Begin(false).ok());
    ASSERT_TRUE(store_->Finish(seq, RequestState::kDone, finish, when).ok());
    ASSERT_TRUE(store_->Commit().ok());
  }

  std::filesystem::path dir_;
  StoreOptions options_;
  std::unique_ptr<RequestStore> store_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
};

TEST_F(RequestStoreTest, TokensThatAreThereAlreadyAreNotAddedAgain) {
  Open();
  Add(Request(1));
  for (int time = 0; time < 2; ++time) {
    ASSERT_TRUE(store_->Begin(false).ok());
    EXPECT_TRUE(store_->AppendTokens(1, Delta(0, {7, 8}), now_).ok());
    ASSERT_TRUE(store_->Commit().ok());
  }

  EXPECT_THAT(*store_->Tokens(1), SizeIs(1));
  EXPECT_EQ(store_->Totals()->tokens, 2);
}

TEST_F(RequestStoreTest, GivesBackWhatWasKeptAfterItIsOpenedAgain) {
  Open();
  Add(Request(1, "key"));
  StoredRequest running = Request(1);
  running.queued.state = RequestState::kRunning;
  running.queued.attempt = 2;
  running.queued.deaths = 1;
  running.queued.job = "job";
  running.queued.rank = 3;
  running.queued.incarnation = 0xffffffffffffffff;
  running.queued.numerics_id = "n1";
  v1::SamplingParams params;
  params.set_top_k(5);
  ASSERT_TRUE(store_->Begin(false).ok());
  ASSERT_TRUE(store_->Save(running.queued).ok());
  ASSERT_TRUE(store_->SaveFirstAssignment(1, now_, params).ok());
  ASSERT_TRUE(store_->AppendTokens(1, Delta(0, {7, 8}), now_).ok());
  ASSERT_TRUE(store_->AppendTokens(1, Delta(2, {9}), now_).ok());
  ASSERT_TRUE(store_->Commit().ok());

  Open();
  const auto unfinished = store_->Unfinished();

  ASSERT_TRUE(unfinished.ok());
  ASSERT_THAT(*unfinished, SizeIs(1));
  const StoredRequest& found = unfinished->front();
  EXPECT_EQ(found.id, "r1");
  EXPECT_EQ(found.seed, 0xfedcba9876543210);
  EXPECT_EQ(found.created, now_);
  EXPECT_EQ(found.queued.deadline, now_ + absl::Seconds(60));
  EXPECT_EQ(found.queued.state, RequestState::kRunning);
  EXPECT_EQ(found.queued.attempt, 2);
  EXPECT_EQ(found.queued.deaths, 1);
  EXPECT_EQ(found.queued.incarnation, 0xffffffffffffffff);
  EXPECT_EQ(found.queued.num_tokens, 3);
  EXPECT_EQ(found.params->top_k(), 5u);
  EXPECT_EQ(found.assigned, now_);
  EXPECT_EQ(found.x_request_id, "x");
  EXPECT_EQ(found.first_token, now_);
  const auto deltas = store_->Tokens(1);
  ASSERT_TRUE(deltas.ok());
  ASSERT_THAT(*deltas, SizeIs(2));
  EXPECT_THAT((*deltas)[0].token_ids(), ElementsAre(7, 8));
  EXPECT_THAT((*deltas)[1].token_ids(), ElementsAre(9));
}

TEST_F(RequestStoreTest, AKeyBelongsToOneRequestOfAClient) {
  Open();
  Add(Request(1, "key"));
  Add(Request(2, ""));
  Add(Request(3, ""));
  StoredRequest other = Request(4, "key");
  other.queued.client = "bob";
  Add(other);

  ASSERT_TRUE(store_->Begin(true).ok());
  const auto existing = store_->Insert(Request(5, "key"));
  ASSERT_TRUE(store_->Commit().ok());

  ASSERT_TRUE(existing.ok());
  ASSERT_TRUE(existing->has_value());
  EXPECT_EQ((*existing)->queued.seq, 1);
  EXPECT_FALSE(store_->Find(5)->has_value());
}

TEST_F(RequestStoreTest, KeepsNoTokensOfARequestThatIsNotThere) {
  Open();
  ASSERT_TRUE(store_->Begin(false).ok());
  ASSERT_TRUE(store_->AppendTokens(9, Delta(0, {1}), now_).ok());
  ASSERT_TRUE(store_->AppendTokens(9, Delta(1, {1}), now_).ok());
  ASSERT_TRUE(store_->Commit().ok());

  const auto deltas = store_->Tokens(9);
  ASSERT_TRUE(deltas.ok());
  EXPECT_THAT(*deltas, IsEmpty());
}

TEST_F(RequestStoreTest, ListsNewestFirstByClientAndState) {
  Open();
  for (int64_t seq = 1; seq <= 4; ++seq) Add(Request(seq));
  StoredRequest other = Request(5);
  other.queued.client = "bob";
  Add(other);
  End(2, now_);
  const auto seqs = [&](const RequestStore::ListFilter& filter) {
    std::vector<int64_t> all;
    const auto listed = store_->List(filter);
    if (!listed.ok()) return all;
    for (const StoredRequest& stored : *listed) {
      all.push_back(stored.queued.seq);
    }
    return all;
  };

  EXPECT_THAT(seqs({}), ElementsAre(5, 4, 3, 2, 1));
  EXPECT_THAT(seqs({.client = "ann", .limit = 2}), ElementsAre(4, 3));
  EXPECT_THAT(seqs({.before_seq = 3}), ElementsAre(2, 1));
  EXPECT_THAT(seqs({.states = 1u << 3}), ElementsAre(2));
}

TEST_F(RequestStoreTest, SummariesAreReadWithoutPromptsAndTokens) {
  Open();
  StoredRequest stored = Request(1);
  stored.request.set_custom_id("mine");
  Add(stored);
  ASSERT_TRUE(store_->Begin(false).ok());
  ASSERT_TRUE(store_->AppendTokens(1, Delta(0, {7, 8}), now_).ok());
  ASSERT_TRUE(store_->Commit().ok());
  End(1, now_);
  // Whoever reads them now fails.
  Damage("UPDATE bodies SET request = x'ff'; UPDATE tokens SET delta = x'ff'");
  Open();

  const auto listed = store_->List({});

  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_THAT(*listed, SizeIs(1));
  EXPECT_EQ(listed->front().id, "r1");
  EXPECT_EQ(listed->front().request.custom_id(), "mine");
  EXPECT_EQ(listed->front().queued.num_tokens, 2);
  EXPECT_EQ(listed->front().seed, 0xfedcba9876543210);
  EXPECT_EQ(listed->front().created, now_);
  EXPECT_EQ(listed->front().ended, now_);
  EXPECT_TRUE(listed->front().finish.has_value());
  EXPECT_TRUE(absl::IsDataLoss(store_->Find(1).status()));
}

TEST_F(RequestStoreTest, ForgetsEndedRequestsByAge) {
  Open();
  for (int64_t seq = 1; seq <= 4; ++seq) Add(Request(seq));
  End(1, now_);
  End(2, now_ + absl::Hours(2));
  End(4, now_);

  ASSERT_TRUE(store_->Begin(false).ok());
  const auto gone =
      store_->Retain({.age = absl::Hours(1)}, now_ + absl::Hours(2), 100);
  ASSERT_TRUE(store_->Commit().ok());

  EXPECT_EQ(*gone, 1);
  EXPECT_FALSE(store_->Find(1)->has_value());
  EXPECT_TRUE(store_->Find(2)->has_value());
  EXPECT_TRUE(store_->Find(3)->has_value()) << "it has not ended";
  EXPECT_TRUE(store_->Find(4)->has_value()) << "its number would come again";
}

TEST_F(RequestStoreTest, ForgetsTheOldestEndedRequestsBySize) {
  Open();
  for (int64_t seq = 1; seq <= 20; ++seq) {
    StoredRequest stored = Request(seq);
    stored.request.set_text(std::string(50'000, 'x'));
    Add(stored);
    End(seq, now_ + absl::Seconds(seq));
  }
  const Retention retention = {.age = absl::Hours(1), .max_bytes = 500'000};

  ASSERT_TRUE(store_->Begin(false).ok());
  const auto gone = store_->Retain(retention, now_, 100);
  ASSERT_TRUE(store_->Commit().ok());

  EXPECT_GT(*gone, 8);
  EXPECT_LT(*gone, 15);
  EXPECT_LE(*store_->UsedBytes(), 500'000);
  EXPECT_FALSE(store_->Find(1)->has_value());
  EXPECT_TRUE(store_->Find(20)->has_value());
}

TEST_F(RequestStoreTest, AFullDiskRefusesOneTransactionAndKeepsTheRest) {
  options_.max_pages = 60;
  Open();
  Add(Request(1));

  StoredRequest big = Request(2);
  big.request.set_text(std::string(1 << 20, 'x'));
  ASSERT_TRUE(store_->Begin(true).ok());
  const auto inserted = store_->Insert(big);
  const absl::Status status =
      inserted.ok() ? store_->Commit() : inserted.status();
  store_->Rollback();

  EXPECT_TRUE(absl::IsResourceExhausted(status)) << status;
  EXPECT_TRUE(store_->Find(1)->has_value());
  Add(Request(3));
}

TEST_F(RequestStoreTest, TotalsOutliveRetentionAndRestarts) {
  Open();
  for (int64_t seq = 1; seq <= 5; ++seq) Add(Request(seq));
  Add(Request(6, "key"));
  ASSERT_TRUE(store_->Begin(true).ok());
  EXPECT_TRUE(store_->Insert(Request(7, "key")).ok());  // the same once more
  ASSERT_TRUE(store_->AppendTokens(1, Delta(0, {1, 2}), now_).ok());
  ASSERT_TRUE(store_->AppendTokens(9, Delta(0, {1, 2}), now_).ok());
  for (const auto& [seq, state] :
       {std::pair(1, RequestState::kDone), std::pair(2, RequestState::kFailed),
        std::pair(3, RequestState::kCancelled),
        std::pair(4, RequestState::kDone), std::pair(4, RequestState::kDone),
        std::pair(9, RequestState::kDone)}) {
    ASSERT_TRUE(store_->Finish(seq, state, {}, now_).ok());
  }
  ASSERT_TRUE(store_->Commit().ok());
  // What is taken back counts for nothing.
  ASSERT_TRUE(store_->Begin(true).ok());
  EXPECT_TRUE(store_->Insert(Request(8)).ok());
  store_->Rollback();
  ASSERT_TRUE(store_->Begin(true).ok());
  EXPECT_EQ(*store_->Retain({.age = absl::Hours(1)}, now_ + absl::Hours(2), 9),
            4);
  ASSERT_TRUE(store_->Commit().ok());

  Open();

  const auto totals = store_->Totals();
  ASSERT_TRUE(totals.ok()) << totals.status();
  EXPECT_EQ(totals->accepted, 6);
  EXPECT_EQ(totals->done, 2);
  EXPECT_EQ(totals->failed, 1);
  EXPECT_EQ(totals->cancelled, 1);
  EXPECT_EQ(totals->tokens, 2);
}

TEST_F(RequestStoreTest, RemembersTheLatestTime) {
  Open();
  Add(Request(1));
  EXPECT_EQ(*store_->LastTime(), now_);

  ASSERT_TRUE(store_->Begin(false).ok());
  ASSERT_TRUE(store_->SaveTime(now_ + absl::Hours(1)).ok());
  ASSERT_TRUE(store_->Commit().ok());

  EXPECT_EQ(*store_->LastTime(), now_ + absl::Hours(1));
}

TEST_F(RequestStoreTest, BringsAnOlderDatabaseUpToDate) {
  std::ifstream file(std::filesystem::path(PORTOLAN_SOURCE_DIR) /
                     "tests/data/coordinator/requests_v1.sql");
  std::stringstream script;
  script << file.rdbuf();
  {
    auto db = SqliteDatabase::Open(options_.path);
    ASSERT_TRUE(db.ok());
    ASSERT_TRUE((*db)->Script(script.str()).ok());
  }

  Open();

  const auto done = store_->Find(1);
  ASSERT_TRUE(done.ok()) << done.status();
  ASSERT_TRUE(done->has_value());
  EXPECT_EQ((*done)->request.text(), "Once");
  EXPECT_EQ((*done)->finish->reason(), v1::FINISH_REASON_STOP);
  EXPECT_EQ((*done)->queued.num_tokens, 2);
  EXPECT_EQ((*done)->assigned, absl::InfiniteFuture());
  const auto deltas = store_->Tokens(1);
  ASSERT_TRUE(deltas.ok()) << deltas.status();
  EXPECT_THAT(deltas->front().token_ids(), ElementsAre(7, 8));
  const auto unfinished = store_->Unfinished();
  ASSERT_TRUE(unfinished.ok());
  EXPECT_THAT(*unfinished, SizeIs(1));
  const auto listed = store_->List({});
  ASSERT_TRUE(listed.ok()) << listed.status();
  EXPECT_THAT(*listed, SizeIs(2));
  EXPECT_EQ(*store_->LastSeq(), 2);
  EXPECT_EQ(store_->Totals()->accepted, 2);
  EXPECT_EQ(store_->Totals()->done, 1);
  EXPECT_EQ(store_->Totals()->tokens, 2);
  Add(Request(3));
  store_.reset();
  Open();
  EXPECT_TRUE(store_->Find(3)->has_value());
}

TEST_F(RequestStoreTest, RefusesADatabaseOfANewerPortolan) {
  Open();
  store_.reset();
  {
    auto db = SqliteDatabase::Open(options_.path);
    ASSERT_TRUE(db.ok());
    ASSERT_TRUE((*db)->Script("PRAGMA user_version = 4711").ok());
  }

  const auto opened = RequestStore::Open(options_);

  EXPECT_TRUE(absl::IsFailedPrecondition(opened.status()));
  EXPECT_THAT(std::string(opened.status().message()), HasSubstr("4711"));
}

TEST_F(RequestStoreTest, RefusesADatabaseOfSomebodyElse) {
  {
    auto db = SqliteDatabase::Open(options_.path);
    ASSERT_TRUE(db.ok());
    ASSERT_TRUE((*db)->Script("CREATE TABLE songs(name TEXT)").ok());
  }
  EXPECT_TRUE(absl::IsDataLoss(RequestStore::Open(options_).status()));
}

TEST_F(RequestStoreTest, RefusesAFileThatIsNoDatabase) {
  std::FILE* file = std::fopen(options_.path.c_str(), "w");
  for (int i = 0; i < 1000; ++i) std::fputs("no database ", file);
  std::fclose(file);

  EXPECT_TRUE(absl::IsDataLoss(RequestStore::Open(options_).status()));
}

}  // namespace
}  // namespace portolan
