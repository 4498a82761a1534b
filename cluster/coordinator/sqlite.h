#pragma once

#include <sqlite3.h>

#include <cstdint>
#include <memory>
#include <string>
#include <string_view>
#include <unordered_map>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace portolan {

// Bytes to bind; a plain string_view is bound as text.
struct SqlBlob {
  std::string_view bytes;
};

// A statement in progress: rows one after another. It is reset when it goes.
class SqliteQuery {
 public:
  // True: a row is there. False: no more, or status() is an error.
  bool Next();
  const absl::Status& status() const { return status_; }

  int64_t Int(int column) const;
  // Valid until Next().
  std::string_view Bytes(int column) const;
  bool IsNull(int column) const;

  ~SqliteQuery();
  SqliteQuery(SqliteQuery&& other) noexcept;
  SqliteQuery& operator=(SqliteQuery&&) = delete;

 private:
  friend class SqliteDatabase;
  SqliteQuery(sqlite3_stmt* statement, absl::Status status)
      : statement_(statement), status_(std::move(status)) {}

  sqlite3_stmt* statement_;
  absl::Status status_;
};

// One connection. Statements are compiled once; bindings live as long as the
// query. Thread-compatible.
//
// Errors: kResourceExhausted (disk full), kDataLoss (not a database, or
// damaged), kUnavailable (another process has it locked), kPermissionDenied,
// kInternal.
class SqliteDatabase {
 public:
  static absl::StatusOr<std::unique_ptr<SqliteDatabase>> Open(
      const std::string& path);
  ~SqliteDatabase();
  SqliteDatabase(const SqliteDatabase&) = delete;
  SqliteDatabase& operator=(const SqliteDatabase&) = delete;

  template <typename... Values>
  SqliteQuery Query(const char* sql, const Values&... values) {
    SqliteQuery query = Prepare(sql);
    int index = 0;
    (Bind(query, ++index, values), ...);
    return query;
  }

  // A statement without rows.
  template <typename... Values>
  absl::Status Run(const char* sql, const Values&... values) {
    SqliteQuery query = Query(sql, values...);
    while (query.Next()) {
    }
    return query.status();
  }

  // The first column of the first row; 0 if there is none.
  template <typename... Values>
  absl::StatusOr<int64_t> Value(const char* sql, const Values&... values) {
    SqliteQuery query = Query(sql, values...);
    const int64_t value = query.Next() ? query.Int(0) : 0;
    if (!query.status().ok()) return query.status();
    return value;
  }

  // Several statements, not cached.
  absl::Status Script(const std::string& sql);

  bool in_transaction() const { return sqlite3_get_autocommit(db_) == 0; }
  int64_t num_changed() const { return sqlite3_changes64(db_); }

 private:
  struct Finalize {
    void operator()(sqlite3_stmt* statement) const {
      sqlite3_finalize(statement);
    }
  };

  explicit SqliteDatabase(sqlite3* db) : db_(db) {}
  SqliteQuery Prepare(const char* sql);
  void Bind(SqliteQuery& query, int index, int64_t value);
  void Bind(SqliteQuery& query, int index, std::string_view text);
  void Bind(SqliteQuery& query, int index, SqlBlob blob);
  void Bind(SqliteQuery& query, int index, std::nullptr_t);

  sqlite3* db_;
  std::unordered_map<std::string, std::unique_ptr<sqlite3_stmt, Finalize>>
      statements_;
};

}  // namespace portolan
