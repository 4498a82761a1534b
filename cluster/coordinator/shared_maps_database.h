#pragma once

#include <compare>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "cluster/coordinator/shared_maps.h"
#include "cluster/coordinator/sqlite.h"

namespace portolan {

// Names a store of expert maps: a model and a format of rows.
struct SharedMapsKey {
  std::string fingerprint = {};
  uint32_t format = 0;

  friend auto operator<=>(const SharedMapsKey&, const SharedMapsKey&) = default;
};

// The shared expert maps on disk, SQLite in a file of their own: history is
// written without fsync, for it may be lost, and never makes a request wait.
//
// Thread-compatible.
class SharedMapsDatabase {
 public:
  // A file that is damaged or of another version is set aside (`path`.damaged)
  // and a new one begun: history is rebuilt, not mourned. `notice` then says
  // so. Errors: the folder cannot be written.
  static absl::StatusOr<std::unique_ptr<SharedMapsDatabase>> Open(
      const std::string& path, std::string& notice);

  struct StoredRow {
    SharedMapsKey store;
    SharedMaps::Row row;
  };
  // By store, then id.
  absl::StatusOr<std::vector<StoredRow>> Load();

  // In one transaction. Errors: of the disk, after which nothing has changed.
  absl::Status Apply(const SharedMapsKey& store,
                     std::span<const SharedMaps::Row> added,
                     std::span<const uint64_t> removed);

 private:
  explicit SharedMapsDatabase(std::unique_ptr<SqliteDatabase> db)
      : db_(std::move(db)) {}

  static absl::StatusOr<std::unique_ptr<SharedMapsDatabase>> TryOpen(
      const std::string& path);
  absl::Status Prepare();
  absl::Status Write(const SharedMapsKey& store,
                     std::span<const SharedMaps::Row> added,
                     std::span<const uint64_t> removed);

  const std::unique_ptr<SqliteDatabase> db_;
};

}  // namespace portolan
