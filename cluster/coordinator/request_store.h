#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "cluster/coordinator/request_queue.h"
#include "cluster/coordinator/sqlite.h"
#include "proto/control.pb.h"
#include "proto/inference.pb.h"

namespace portolan {

struct StoreOptions {
  std::string path;       // of the database file; created if absent
  int64_t max_pages = 0;  // > 0: the database may not grow beyond (for tests)
  // New requests are refused when the disk has less than this left: what runs
  // must be able to end.
  int64_t min_free_bytes = 32 << 20;
  // Free bytes of the file system of a path; default: what it says itself.
  std::function<int64_t(const std::string&)> free_bytes = {};
};

// A request as it is kept.
struct StoredRequest {
  QueuedRequest queued = {};
  std::string id = {};
  v1::GenerateRequest request = {};  // as it came
  std::string traceparent = {};
  std::string x_request_id = {};
  uint64_t seed = 0;
  absl::Time created = {};
  // All of the sampling parameters, from the first assignment on.
  std::optional<v1::SamplingParams> params = {};
  absl::Time assigned = absl::InfiniteFuture();  // first
  absl::Time first_token = absl::InfiniteFuture();
  absl::Time ended = absl::InfiniteFuture();
  std::optional<v1::Finish> finish = {};
};

// Counts over the life of a database, what is forgotten meanwhile included.
struct StoreTotals {
  int64_t accepted = 0;
  int64_t done = 0;
  int64_t failed = 0;
  int64_t cancelled = 0;
  int64_t tokens = 0;
};

struct Retention {
  absl::Duration age = absl::Hours(7 * 24);
  int64_t max_bytes = 0;  // of the database; 0: no limit
};

// Requests and their tokens on disk: SQLite in WAL mode. Writes happen between
// Begin() and Commit(); reads anywhere.
//
// Thread-compatible. Errors: as SqliteDatabase; after kResourceExhausted the
// transaction is gone and what was committed before is intact.
class RequestStore {
 public:
  // Errors: kFailedPrecondition (a newer schema), else as MigrateStore().
  static absl::StatusOr<std::unique_ptr<RequestStore>> Open(
      const StoreOptions& options);

  // Durable: Commit() returns when the disk has it. Else a killed process
  // loses nothing, a power cut the last moments.
  absl::Status Begin(bool durable);
  absl::Status Commit();
  void Rollback();

  // kResourceExhausted if the disk has too little left for new requests.
  absl::Status CheckRoom() const;
  // Returns nothing, or another request with the same client and idempotency
  // key, and then adds nothing. A request that is there already itself is not
  // added again: a commit may have reached the disk and still have reported an
  // error, after which the same comes anew.
  absl::StatusOr<std::optional<StoredRequest>> Insert(
      const StoredRequest& request);
  // State, attempt, deaths and rank; at the first assignment also its time and
  // the params. Nothing if it is not there.
  absl::Status Save(const QueuedRequest& queued);
  // It outlives its call.
  absl::Status SaveDetached(int64_t seq, absl::Time deadline);
  absl::Status SaveFirstAssignment(int64_t seq, absl::Time when,
                                   const v1::SamplingParams& params);
  // The tokens from delta.offset() on. Nothing if the request is not there.
  absl::Status AppendTokens(int64_t seq, const v1::TokenDelta& delta,
                            absl::Time now);
  absl::Status Finish(int64_t seq, RequestState state, const v1::Finish& finish,
                      absl::Time now);
  absl::Status SaveModel(const v1::ModelIdentity& model);
  // For the clock at the next start.
  absl::Status SaveTime(absl::Time now);

  absl::StatusOr<std::optional<StoredRequest>> Find(int64_t seq);
  absl::StatusOr<std::optional<StoredRequest>> FindByKey(
      std::string_view client, std::string_view key);
  absl::StatusOr<std::vector<StoredRequest>> Unfinished();
  // In order.
  absl::StatusOr<std::vector<v1::TokenDelta>> Tokens(int64_t seq);
  struct ListFilter {
    std::optional<std::string> client = {};
    uint32_t states = ~0u;  // bit i: RequestState i
    int64_t before_seq = INT64_MAX;
    int64_t limit = 100;
  };
  // Newest first, without what a summary does not tell: of the request there
  // is its custom id only, and neither prompts nor tokens are read.
  absl::StatusOr<std::vector<StoredRequest>> List(const ListFilter& filter);
  absl::StatusOr<std::vector<v1::ModelIdentity>> Models();

  // Of what is committed.
  absl::StatusOr<StoreTotals> Totals();
  absl::StatusOr<int64_t> LastSeq();
  // The latest time on record; kept below it, the clock would fall.
  absl::StatusOr<absl::Time> LastTime();
  // Bytes of the database without its free pages.
  absl::StatusOr<int64_t> UsedBytes();
  // Forgets up to `limit` ended requests, oldest first, that are too old or
  // too many. The newest request of all stays: seq numbers are never used
  // again. Returns how many went.
  absl::StatusOr<int64_t> Retain(const Retention& retention, absl::Time now,
                                 int64_t limit);

 private:
  RequestStore(std::unique_ptr<SqliteDatabase> db, const StoreOptions& options)
      : options_(options), db_(std::move(db)) {}
  absl::StatusOr<std::optional<StoredRequest>> FindRival(
      const StoredRequest& stored);
  absl::StatusOr<StoredRequest> ReadRow(const SqliteQuery& row);
  absl::StatusOr<std::vector<StoredRequest>> ReadRows(SqliteQuery rows);
  static absl::StatusOr<StoredRequest> ReadSummary(const SqliteQuery& row);
  absl::Status CountTokens(std::vector<StoredRequest>& requests);
  absl::Status Forget(int64_t seq);
  absl::Status SaveTotals();

  const StoreOptions options_;
  const std::unique_ptr<SqliteDatabase> db_;
  std::optional<bool> durable_;
  StoreTotals added_;  // by the transaction in work
};

}  // namespace portolan
