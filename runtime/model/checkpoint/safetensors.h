#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/statusor.h"
#include "experts/expert_extents.h"
#include "runtime/model/checkpoint/random_access_file.h"
#include "runtime/model/checkpoint/safetensors_header.h"

namespace portolan {

// What bytes are read for; they are counted apart.
enum class ReadPurpose : uint8_t { kMetadata, kDense, kExpert };

// A model's safetensors: model.safetensors, or the shards that
// model.safetensors.index.json lists. Opening reads headers only; weights are
// read range by range.
//
// Thread-safe after Open().
class Checkpoint {
 public:
  struct BytesRead {
    uint64_t metadata = 0;
    uint64_t dense = 0;
    uint64_t expert = 0;
  };
  // Told of every read of the data section, on the thread that reads.
  using ReadObserver =
      std::function<void(const TensorExtent& range, ReadPurpose purpose)>;

  // Errors: kNotFound (no such files, or a shard is missing), kDataLoss
  // (truncated), kInvalidArgument (malformed); they name file and tensor.
  static absl::StatusOr<std::unique_ptr<Checkpoint>> Open(
      const std::string& dir, ReadObserver observer = nullptr);

  const std::string& dir() const { return dir_; }
  std::span<const RandomAccessFile> files() const { return files_; }
  // By name.
  std::span<const TensorInfo> tensors() const { return tensors_; }

  // Null if there is none.
  const TensorInfo* Find(std::string_view name) const;

  // The tensor, which must have this shape and a dtype that can be loaded.
  // Errors: kNotFound naming the files that were searched, kInvalidArgument
  // (wrong shape: wanted and found), kUnimplemented (dtype).
  absl::StatusOr<const TensorInfo*> Get(
      const std::string& name, const std::vector<int64_t>& shape) const;

  // A tensor of Get() as a range of its file.
  TensorExtent ExtentOf(const TensorInfo& tensor) const;

  // Fills `out` from byte `begin` of the tensor on, which must hold that many.
  // Errors: as RandomAccessFile::Read(), naming the tensor too.
  absl::Status Read(const TensorInfo& tensor, uint64_t begin,
                    std::span<std::byte> out, ReadPurpose purpose) const;

  // Likewise for a range of a file of this checkpoint.
  // Errors: as RandomAccessFile::Read(); kNotFound for another file.
  absl::Status Read(const TensorExtent& extent, std::span<std::byte> out,
                    ReadPurpose purpose) const;

  // So far, headers left out. Logical bytes: what was asked for.
  BytesRead bytes_read() const;

 private:
  Checkpoint(std::string dir, ReadObserver observer)
      : dir_(std::move(dir)), observer_(std::move(observer)) {}

  absl::Status AddFile(const std::string& name);
  absl::Status AddShards(const std::string& index_path);
  void SortTensors();
  absl::Status ReadCounted(const RandomAccessFile& file, uint64_t offset,
                           std::span<std::byte> out, TensorDtype dtype,
                           ReadPurpose purpose) const;

  const std::string dir_;
  const ReadObserver observer_;
  std::vector<RandomAccessFile> files_;
  std::vector<TensorInfo> tensors_;
  mutable std::array<std::atomic<uint64_t>, 3> bytes_read_{};
};

// tensor -> shard of a model.safetensors.index.json. A shard is a plain file
// name: a path would lead out of the model's directory.
// Errors: kInvalidArgument naming file and tensor.
absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(
    const std::string& file, std::string_view text);

}  // namespace portolan
