#include "cluster/coordinator/store_schema.h"

#include <array>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// Times are microseconds since 1970 of the coordinator's clock. `request` is
// the GenerateRequest as it came; model and seed are those in force; `params`,
// set at the first assignment, all of SamplingParams. A row of tokens is a
// TokenDelta, numbered from `first`.
constexpr char kVersion1[] = R"sql(
  CREATE TABLE requests(
    seq INTEGER PRIMARY KEY,
    id TEXT NOT NULL,
    client TEXT NOT NULL,
    idempotency_key TEXT,
    request BLOB NOT NULL,
    traceparent TEXT NOT NULL,
    detached INTEGER NOT NULL,
    model TEXT NOT NULL,
    seed INTEGER NOT NULL,
    prompt_tokens INTEGER NOT NULL,
    max_tokens INTEGER NOT NULL,
    created_us INTEGER NOT NULL,
    deadline_us INTEGER,
    state INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 0,
    deaths INTEGER NOT NULL DEFAULT 0,
    numerics_id TEXT NOT NULL DEFAULT '',
    job TEXT NOT NULL DEFAULT '',
    rank INTEGER NOT NULL DEFAULT -1,
    incarnation INTEGER NOT NULL DEFAULT 0,
    params BLOB,
    first_token_us INTEGER,
    ended_us INTEGER,
    finish BLOB);
  CREATE UNIQUE INDEX requests_by_key ON requests(client, idempotency_key)
    WHERE idempotency_key IS NOT NULL;
  CREATE INDEX requests_unfinished ON requests(seq) WHERE ended_us IS NULL;
  CREATE INDEX requests_by_end ON requests(ended_us)
    WHERE ended_us IS NOT NULL;
  CREATE TABLE tokens(
    seq INTEGER NOT NULL,
    first INTEGER NOT NULL,
    num INTEGER NOT NULL,
    delta BLOB NOT NULL,
    PRIMARY KEY(seq, first)) WITHOUT ROWID;
  CREATE TABLE models(
    name TEXT NOT NULL,
    fingerprint TEXT NOT NULL,
    identity BLOB NOT NULL,
    PRIMARY KEY(name, fingerprint)) WITHOUT ROWID;
  CREATE TABLE facts(name TEXT PRIMARY KEY, value INTEGER) WITHOUT ROWID;
)sql";

// The caller's own id and the first assignment, which log lines and metrics
// tell also after a restart.
constexpr char kVersion2[] = R"sql(
  ALTER TABLE requests ADD COLUMN x_request_id TEXT NOT NULL DEFAULT '';
  ALTER TABLE requests ADD COLUMN assigned_us INTEGER;
)sql";

// Totals over all requests ever, those forgotten too (RequestStore::Totals).
// What was forgotten before is not known any more. States are RequestState's.
constexpr char kVersion3[] = R"sql(
  INSERT OR REPLACE INTO facts(name, value)
    SELECT 'total_accepted', count(*) FROM requests UNION ALL
    SELECT 'total_done', count(*) FROM requests WHERE state = 3 UNION ALL
    SELECT 'total_failed', count(*) FROM requests WHERE state = 4 UNION ALL
    SELECT 'total_cancelled', count(*) FROM requests WHERE state = 5 UNION ALL
    SELECT 'total_tokens', coalesce(sum(num), 0) FROM tokens;
)sql";

// The request has a table of its own: a row of `requests` is written anew with
// every change of its state, and read to tell of it, and a prompt may be long.
// `custom_id` is that of the request; null in rows of an older version.
constexpr char kVersion4[] = R"sql(
  CREATE TABLE bodies(seq INTEGER PRIMARY KEY, request BLOB NOT NULL);
  INSERT INTO bodies(seq, request) SELECT seq, request FROM requests;
  ALTER TABLE requests DROP COLUMN request;
  ALTER TABLE requests ADD COLUMN custom_id TEXT;
)sql";

// Step i brings version i to version i + 1.
constexpr std::array<const char*, kStoreSchemaVersion> kSteps = {
    kVersion1, kVersion2, kVersion3, kVersion4};

absl::Status RunSteps(SqliteDatabase& db, int64_t version) {
  for (; version < kStoreSchemaVersion; ++version) {
    PORTOLAN_RETURN_IF_ERROR(db.Script(kSteps[static_cast<size_t>(version)]));
  }
  return db.Script(absl::StrCat("PRAGMA user_version = ", version));
}

}  // namespace

absl::Status MigrateStore(SqliteDatabase& db) {
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t version,
                            db.Value("PRAGMA user_version"));
  if (version > kStoreSchemaVersion) {
    return absl::FailedPreconditionError(absl::StrCat(
        "the database in --data-dir has schema version ", version,
        ", this portolan knows versions up to ", kStoreSchemaVersion,
        "; use the newer portolan or another --data-dir"));
  }
  if (version == kStoreSchemaVersion) return absl::OkStatus();
  PORTOLAN_ASSIGN_OR_RETURN(
      const int64_t num_tables,
      db.Value("SELECT count(*) FROM sqlite_schema WHERE type = 'table'"));
  if (version == 0 && num_tables > 0) {
    return absl::DataLossError(
        "the database in --data-dir was not written by portolan; use another "
        "--data-dir");
  }
  PORTOLAN_RETURN_IF_ERROR(db.Run("BEGIN IMMEDIATE"));
  absl::Status status = RunSteps(db, version);
  if (status.ok()) status = db.Run("COMMIT");
  if (!status.ok() && db.in_transaction()) (void)db.Run("ROLLBACK");
  return status;
}

}  // namespace portolan
