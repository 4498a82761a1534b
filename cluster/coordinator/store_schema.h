#pragma once

#include "absl/status/status.h"
#include "cluster/coordinator/sqlite.h"

namespace portolan {

// Version of the tables in the coordinator's database; kept in
// PRAGMA user_version. Each change of the tables adds one, and a step that
// brings a database of the version before up to it.
inline constexpr int64_t kStoreSchemaVersion = 4;

// Makes the tables in an empty database, or brings an older one up to date, in
// one transaction.
// Errors: kFailedPrecondition (written by a newer portolan; names both
// versions), kDataLoss (a database, but not ours); else as SqliteDatabase.
absl::Status MigrateStore(SqliteDatabase& db);

}  // namespace portolan
