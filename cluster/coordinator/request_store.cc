#include "cluster/coordinator/request_store.h"

#include <sys/statvfs.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/store_schema.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

struct TotalField {
  std::string_view name;
  int64_t StoreTotals::*field;
};
constexpr TotalField kTotals[] = {
    {"total_accepted", &StoreTotals::accepted},
    {"total_done", &StoreTotals::done},
    {"total_failed", &StoreTotals::failed},
    {"total_cancelled", &StoreTotals::cancelled},
    {"total_tokens", &StoreTotals::tokens},
};

// Of the file system, for us; none where it does not say.
int64_t FreeBytes(const std::string& path) {
  struct statvfs info = {};
  if (statvfs(path.c_str(), &info) != 0) return INT64_MAX;
  return static_cast<int64_t>(info.f_bavail * info.f_frsize);
}

}  // namespace

absl::StatusOr<std::unique_ptr<RequestStore>> RequestStore::Open(
    const StoreOptions& options) {
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<SqliteDatabase> db,
                            SqliteDatabase::Open(options.path));
  // The whole file is one connection's.
  PORTOLAN_RETURN_IF_ERROR(db->Script("PRAGMA locking_mode = EXCLUSIVE"));
  PORTOLAN_RETURN_IF_ERROR(db->Script("PRAGMA journal_mode = WAL"));
  PORTOLAN_RETURN_IF_ERROR(MigrateStore(*db));
  if (options.max_pages > 0) {
    PORTOLAN_RETURN_IF_ERROR(db->Script(
        absl::StrCat("PRAGMA max_page_count = ", options.max_pages)));
  }
  return std::unique_ptr<RequestStore>(
      new RequestStore(std::move(db), options));
}

absl::Status RequestStore::CheckRoom() const {
  const int64_t free = options_.free_bytes ? options_.free_bytes(options_.path)
                                           : FreeBytes(options_.path);
  if (free >= options_.min_free_bytes) return absl::OkStatus();
  return absl::ResourceExhaustedError(
      absl::StrCat("the disk of --data-dir has ", free,
                   " bytes left; new requests are refused below ",
                   options_.min_free_bytes, " (--min-free-disk)"));
}

absl::Status RequestStore::Begin(bool durable) {
  if (durable_ != durable) {
    PORTOLAN_RETURN_IF_ERROR(db_->Script(
        durable ? "PRAGMA synchronous = FULL" : "PRAGMA synchronous = NORMAL"));
    durable_ = durable;
  }
  return db_->Run("BEGIN IMMEDIATE");
}

absl::Status RequestStore::Commit() {
  absl::Status status = SaveTotals();
  if (status.ok()) status = db_->Run("COMMIT");
  if (!status.ok()) Rollback();
  added_ = {};
  return status;
}

// Once a transaction, however many requests it has.
absl::Status RequestStore::SaveTotals() {
  for (const TotalField& total : kTotals) {
    const int64_t added = added_.*total.field;
    if (added == 0) continue;
    PORTOLAN_RETURN_IF_ERROR(
        db_->Run("UPDATE facts SET value = value + ?2 WHERE name = ?1",
                 total.name, added));
  }
  return absl::OkStatus();
}

void RequestStore::Rollback() {
  added_ = {};
  // SQLite has done it already after some errors.
  if (db_->in_transaction()) (void)db_->Run("ROLLBACK");
}

absl::StatusOr<std::optional<StoredRequest>> RequestStore::Insert(
    const StoredRequest& stored) {
  const QueuedRequest& queued = stored.queued;
  const std::string request = stored.request.SerializeAsString();
  const std::string& key = stored.request.idempotency_key();
  PORTOLAN_RETURN_IF_ERROR(db_->Run(
      "INSERT INTO requests(seq, id, client, idempotency_key, custom_id, "
      "traceparent, detached, model, seed, prompt_tokens, max_tokens, "
      "created_us, deadline_us, state, x_request_id) VALUES(?1, ?2, ?3, "
      "nullif(?4, ''), ?5, ?6, ?7, ?8, ?9, ?10, ?11, ?12, nullif(?13, 0), ?14, "
      "?15) ON CONFLICT DO NOTHING",
      queued.seq, stored.id, queued.client, key, stored.request.custom_id(),
      stored.traceparent, int64_t{queued.detached}, queued.model,
      static_cast<int64_t>(stored.seed), queued.prompt_tokens,
      queued.max_tokens, absl::ToUnixMicros(stored.created),
      queued.deadline == absl::InfiniteFuture()
          ? int64_t{0}
          : absl::ToUnixMicros(queued.deadline),
      static_cast<int64_t>(queued.state), stored.x_request_id));
  if (db_->num_changed() == 0) return FindRival(stored);
  PORTOLAN_RETURN_IF_ERROR(
      db_->Run("INSERT INTO bodies(seq, request) VALUES(?1, ?2)", queued.seq,
               SqlBlob{request}));
  ++added_.accepted;
  return std::nullopt;
}

// What keeps `stored` from being added; nothing if that is itself.
absl::StatusOr<std::optional<StoredRequest>> RequestStore::FindRival(
    const StoredRequest& stored) {
  const int64_t seq = stored.queued.seq;
  PORTOLAN_ASSIGN_OR_RETURN(
      const int64_t itself,
      db_->Value("SELECT count(*) FROM requests WHERE seq = ?1 AND id = ?2",
                 seq, stored.id));
  if (itself > 0) return std::nullopt;
  PORTOLAN_ASSIGN_OR_RETURN(
      std::optional<StoredRequest> rival,
      FindByKey(stored.queued.client, stored.request.idempotency_key()));
  if (rival) return rival;
  return absl::InternalError(
      absl::StrCat("request ", seq, " in --data-dir is another one"));
}

absl::Status RequestStore::Save(const QueuedRequest& queued) {
  return db_->Run(
      "UPDATE requests SET state = ?2, attempt = ?3, deaths = ?4, "
      "numerics_id = ?5, job = ?6, rank = ?7, incarnation = ?8 "
      "WHERE seq = ?1",
      queued.seq, static_cast<int64_t>(queued.state), int64_t{queued.attempt},
      int64_t{queued.deaths}, queued.numerics_id, queued.job,
      int64_t{queued.rank}, static_cast<int64_t>(queued.incarnation));
}

absl::Status RequestStore::SaveDetached(int64_t seq, absl::Time deadline) {
  return db_->Run(
      "UPDATE requests SET detached = 1, deadline_us = nullif(?2, 0) "
      "WHERE seq = ?1",
      seq,
      deadline == absl::InfiniteFuture() ? int64_t{0}
                                         : absl::ToUnixMicros(deadline));
}

absl::Status RequestStore::SaveFirstAssignment(
    int64_t seq, absl::Time when, const v1::SamplingParams& params) {
  const std::string bytes = params.SerializeAsString();
  return db_->Run(
      "UPDATE requests SET params = ?2, assigned_us = ?3 WHERE seq = ?1", seq,
      SqlBlob{bytes}, absl::ToUnixMicros(when));
}

absl::Status RequestStore::AppendTokens(int64_t seq,
                                        const v1::TokenDelta& delta,
                                        absl::Time now) {
  const std::string bytes = delta.SerializeAsString();
  PORTOLAN_RETURN_IF_ERROR(db_->Run(
      // A commit may have reached the disk and still reported an error; then
      // the same tokens come again.
      "INSERT OR IGNORE INTO tokens(seq, first, num, delta) SELECT ?1, ?2, ?3, "
      "?4 "
      "WHERE EXISTS (SELECT 1 FROM requests WHERE seq = ?1)",
      seq, int64_t{delta.offset()}, int64_t{delta.token_ids_size()},
      SqlBlob{bytes}));
  if (db_->num_changed() > 0) added_.tokens += delta.token_ids_size();
  if (delta.offset() > 0) return absl::OkStatus();
  return db_->Run("UPDATE requests SET first_token_us = ?2 WHERE seq = ?1", seq,
                  absl::ToUnixMicros(now));
}

absl::Status RequestStore::Finish(int64_t seq, RequestState state,
                                  const v1::Finish& finish, absl::Time now) {
  const std::string bytes = finish.SerializeAsString();
  PORTOLAN_RETURN_IF_ERROR(
      db_->Run("UPDATE requests SET state = ?2, finish = ?3, ended_us = ?4 "
               "WHERE seq = ?1 AND ended_us IS NULL",
               seq, static_cast<int64_t>(state), SqlBlob{bytes},
               absl::ToUnixMicros(now)));
  if (db_->num_changed() == 0) return absl::OkStatus();
  switch (state) {
    case RequestState::kDone:
      ++added_.done;
      break;
    case RequestState::kCancelled:
      ++added_.cancelled;
      break;
    default:
      ++added_.failed;
  }
  return absl::OkStatus();
}

absl::Status RequestStore::SaveModel(const v1::ModelIdentity& model) {
  const std::string bytes = model.SerializeAsString();
  return db_->Run(
      "INSERT OR REPLACE INTO models(name, fingerprint, identity) "
      "VALUES(?1, ?2, ?3)",
      model.name(), model.fingerprint(), SqlBlob{bytes});
}

absl::Status RequestStore::SaveTime(absl::Time now) {
  return db_->Run(
      "INSERT OR REPLACE INTO facts(name, value) VALUES('time_us', ?1)",
      absl::ToUnixMicros(now));
}

absl::StatusOr<StoreTotals> RequestStore::Totals() {
  StoreTotals totals;
  for (const TotalField& total : kTotals) {
    PORTOLAN_ASSIGN_OR_RETURN(
        totals.*total.field,
        db_->Value("SELECT value FROM facts WHERE name = ?1", total.name));
  }
  return totals;
}

absl::StatusOr<int64_t> RequestStore::LastSeq() {
  return db_->Value("SELECT max(seq) FROM requests");
}

absl::StatusOr<absl::Time> RequestStore::LastTime() {
  PORTOLAN_ASSIGN_OR_RETURN(
      const int64_t micros,
      db_->Value("SELECT max(t) FROM ("
                 "SELECT value AS t FROM facts WHERE name = 'time_us' "
                 "UNION ALL SELECT max(ended_us) FROM requests UNION ALL "
                 "SELECT created_us FROM requests WHERE seq = "
                 "(SELECT max(seq) FROM requests))"));
  return absl::FromUnixMicros(micros);
}

absl::StatusOr<int64_t> RequestStore::UsedBytes() {
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t pages,
                            db_->Value("PRAGMA page_count"));
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t free,
                            db_->Value("PRAGMA freelist_count"));
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t size, db_->Value("PRAGMA page_size"));
  return (pages - free) * size;
}

absl::StatusOr<int64_t> RequestStore::Retain(const Retention& retention,
                                             absl::Time now, int64_t limit) {
  int64_t num_gone = 0;
  for (; num_gone < limit; ++num_gone) {
    PORTOLAN_ASSIGN_OR_RETURN(const int64_t bytes, UsedBytes());
    const bool full = retention.max_bytes > 0 && bytes > retention.max_bytes;
    const absl::Time horizon =
        full ? absl::InfiniteFuture() : now - retention.age;
    PORTOLAN_ASSIGN_OR_RETURN(
        const int64_t seq,
        db_->Value("SELECT seq FROM requests WHERE ended_us < ?1 AND seq < "
                   "(SELECT max(seq) FROM requests) ORDER BY ended_us LIMIT 1",
                   absl::ToUnixMicros(horizon)));
    if (seq == 0) break;
    PORTOLAN_RETURN_IF_ERROR(Forget(seq));
  }
  return num_gone;
}

absl::Status RequestStore::Forget(int64_t seq) {
  PORTOLAN_RETURN_IF_ERROR(db_->Run("DELETE FROM tokens WHERE seq = ?1", seq));
  PORTOLAN_RETURN_IF_ERROR(db_->Run("DELETE FROM bodies WHERE seq = ?1", seq));
  return db_->Run("DELETE FROM requests WHERE seq = ?1", seq);
}

}  // namespace portolan
