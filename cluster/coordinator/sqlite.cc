#include "cluster/coordinator/sqlite.h"

#include <cerrno>
#include <utility>

#include "absl/strings/str_cat.h"

namespace portolan {
namespace {

absl::Status LastError(sqlite3* db, const char* what) {
  const int code = sqlite3_errcode(db);
  const bool no_space =
      code == SQLITE_FULL ||
      (code == SQLITE_IOERR && (sqlite3_system_errno(db) == ENOSPC ||
                                sqlite3_system_errno(db) == EDQUOT));
  if (no_space) {
    return absl::ResourceExhaustedError("the disk of --data-dir is full");
  }
  const std::string message =
      absl::StrCat("SQLite: ", sqlite3_errmsg(db), " (", what, ")");
  switch (code) {
    case SQLITE_CORRUPT:
    case SQLITE_NOTADB:
      return absl::DataLossError(message);
    case SQLITE_BUSY:
    case SQLITE_LOCKED:
      return absl::UnavailableError(message);
    case SQLITE_PERM:
    case SQLITE_READONLY:
    case SQLITE_CANTOPEN:
      return absl::PermissionDeniedError(message);
    default:
      return absl::InternalError(message);
  }
}

}  // namespace

bool SqliteQuery::Next() {
  if (!status_.ok()) return false;
  switch (sqlite3_step(statement_)) {
    case SQLITE_ROW:
      return true;
    case SQLITE_DONE:
      return false;
    default:
      status_ =
          LastError(sqlite3_db_handle(statement_), sqlite3_sql(statement_));
      return false;
  }
}

int64_t SqliteQuery::Int(int column) const {
  return sqlite3_column_int64(statement_, column);
}

std::string_view SqliteQuery::Bytes(int column) const {
  const void* data = sqlite3_column_blob(statement_, column);
  const int size = sqlite3_column_bytes(statement_, column);
  return {static_cast<const char*>(data), static_cast<size_t>(size)};
}

bool SqliteQuery::IsNull(int column) const {
  return sqlite3_column_type(statement_, column) == SQLITE_NULL;
}

SqliteQuery::~SqliteQuery() {
  if (statement_ == nullptr) return;
  sqlite3_reset(statement_);
  sqlite3_clear_bindings(statement_);
}

SqliteQuery::SqliteQuery(SqliteQuery&& other) noexcept
    : statement_(std::exchange(other.statement_, nullptr)),
      status_(std::move(other.status_)) {}

absl::StatusOr<std::unique_ptr<SqliteDatabase>> SqliteDatabase::Open(
    const std::string& path) {
  sqlite3* raw = nullptr;
  const int code = sqlite3_open_v2(
      path.c_str(), &raw,
      SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
      nullptr);
  std::unique_ptr<SqliteDatabase> db(new SqliteDatabase(raw));
  if (code != SQLITE_OK) return LastError(raw, path.c_str());
  return db;
}

SqliteDatabase::~SqliteDatabase() {
  statements_.clear();
  sqlite3_close(db_);
}

absl::Status SqliteDatabase::Script(const std::string& sql) {
  if (sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr) != SQLITE_OK) {
    return LastError(db_, sql.c_str());
  }
  return absl::OkStatus();
}

SqliteQuery SqliteDatabase::Prepare(const char* sql) {
  std::unique_ptr<sqlite3_stmt, Finalize>& statement = statements_[sql];
  if (statement == nullptr) {
    sqlite3_stmt* raw = nullptr;
    if (sqlite3_prepare_v3(db_, sql, -1, SQLITE_PREPARE_PERSISTENT, &raw,
                           nullptr) != SQLITE_OK) {
      return SqliteQuery(nullptr, LastError(db_, sql));
    }
    statement.reset(raw);
  }
  return SqliteQuery(statement.get(), absl::OkStatus());
}

void SqliteDatabase::Bind(SqliteQuery& query, int index, int64_t value) {
  sqlite3_bind_int64(query.statement_, index, value);
}

void SqliteDatabase::Bind(SqliteQuery& query, int index,
                          std::string_view text) {
  sqlite3_bind_text64(query.statement_, index, text.data(), text.size(),
                      SQLITE_STATIC, SQLITE_UTF8);
}

void SqliteDatabase::Bind(SqliteQuery& query, int index, SqlBlob blob) {
  // A null pointer would be bound as NULL.
  const char* data = blob.bytes.empty() ? "" : blob.bytes.data();
  sqlite3_bind_blob64(query.statement_, index, data, blob.bytes.size(),
                      SQLITE_STATIC);
}

void SqliteDatabase::Bind(SqliteQuery& query, int index, std::nullptr_t) {
  sqlite3_bind_null(query.statement_, index);
}

}  // namespace portolan
