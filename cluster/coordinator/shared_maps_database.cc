#include "cluster/coordinator/shared_maps_database.h"

#include <cstdio>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr int64_t kSchemaVersion = 1;
constexpr char kSchema[] =
    "CREATE TABLE IF NOT EXISTS expert_maps ("
    " fingerprint TEXT NOT NULL, format INTEGER NOT NULL, id INTEGER NOT NULL,"
    " key BLOB NOT NULL, map BLOB NOT NULL, hits INTEGER NOT NULL,"
    " PRIMARY KEY (fingerprint, format, id)) WITHOUT ROWID;";

}  // namespace

absl::Status SharedMapsDatabase::Prepare() {
  PORTOLAN_RETURN_IF_ERROR(
      db_->Script("PRAGMA journal_mode=WAL; PRAGMA synchronous=OFF"));
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t version,
                            db_->Value("PRAGMA user_version"));
  if (version != 0 && version != kSchemaVersion) {
    return absl::FailedPreconditionError(
        absl::StrCat("of version ", version, ", not ", kSchemaVersion));
  }
  return db_->Script(
      absl::StrCat(kSchema, "PRAGMA user_version=", kSchemaVersion));
}

absl::StatusOr<std::unique_ptr<SharedMapsDatabase>> SharedMapsDatabase::TryOpen(
    const std::string& path) {
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<SqliteDatabase> db,
                            SqliteDatabase::Open(path));
  std::unique_ptr<SharedMapsDatabase> opened(
      new SharedMapsDatabase(std::move(db)));
  PORTOLAN_RETURN_IF_ERROR(opened->Prepare());
  PORTOLAN_RETURN_IF_ERROR(opened->Load().status());
  return opened;
}

absl::StatusOr<std::unique_ptr<SharedMapsDatabase>> SharedMapsDatabase::Open(
    const std::string& path, std::string& notice) {
  auto opened = TryOpen(path);
  if (opened.ok()) return opened;
  notice = absl::StrCat(path, " cannot be used (", opened.status().message(),
                        "): set aside as ", path, ".damaged");
  std::rename(path.c_str(), (path + ".damaged").c_str());
  for (const char* suffix : {"-wal", "-shm"}) {
    std::remove((path + suffix).c_str());
  }
  return TryOpen(path);
}

absl::StatusOr<std::vector<SharedMapsDatabase::StoredRow>>
SharedMapsDatabase::Load() {
  std::vector<StoredRow> rows;
  SqliteQuery query = db_->Query(
      "SELECT fingerprint, format, id, key, map, hits FROM expert_maps");
  while (query.Next()) {
    rows.push_back({.store = {.fingerprint = std::string(query.Bytes(0)),
                              .format = static_cast<uint32_t>(query.Int(1))},
                    .row = {.id = static_cast<uint64_t>(query.Int(2)),
                            .key = std::string(query.Bytes(3)),
                            .map = std::string(query.Bytes(4)),
                            .usefulness = static_cast<float>(query.Int(5))}});
  }
  if (!query.status().ok()) return query.status();
  return rows;
}

absl::Status SharedMapsDatabase::Apply(const SharedMapsKey& store,
                                       std::span<const SharedMaps::Row> added,
                                       std::span<const uint64_t> removed) {
  PORTOLAN_RETURN_IF_ERROR(db_->Run("BEGIN IMMEDIATE"));
  const absl::Status written = Write(store, added, removed);
  if (written.ok()) return db_->Run("COMMIT");
  // A full disk ends the transaction by itself.
  if (db_->in_transaction()) (void)db_->Run("ROLLBACK");
  return written;
}

absl::Status SharedMapsDatabase::Write(const SharedMapsKey& store,
                                       std::span<const SharedMaps::Row> added,
                                       std::span<const uint64_t> removed) {
  const std::string_view fingerprint = store.fingerprint;
  const int64_t format = store.format;
  for (const SharedMaps::Row& row : added) {
    PORTOLAN_RETURN_IF_ERROR(db_->Run(
        "INSERT OR REPLACE INTO expert_maps VALUES "
        "(?1, ?2, ?3, ?4, ?5, ?6)",
        fingerprint, format, static_cast<int64_t>(row.id), SqlBlob{row.key},
        SqlBlob{row.map}, static_cast<int64_t>(row.usefulness)));
  }
  for (const uint64_t id : removed) {
    PORTOLAN_RETURN_IF_ERROR(
        db_->Run("DELETE FROM expert_maps WHERE fingerprint = ?1 AND "
                 "format = ?2 AND id = ?3",
                 fingerprint, format, static_cast<int64_t>(id)));
  }
  return absl::OkStatus();
}

}  // namespace portolan
