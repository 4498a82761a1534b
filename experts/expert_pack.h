#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "experts/expert_shape.h"
#include "experts/expert_source.h"
#include "experts/record_format.h"
#include "runtime/kernels/weight_format.h"

namespace portolan {

// An expert pack holds every expert of a model as the kernels read it: a load
// is one aligned read straight into the slot. A file, little-endian:
//
//   header  4 KiB     magic "PORTPACK", version, weight format, bytes of header
//                     and table, fingerprint of the model, numerics name,
//                     layers, experts of a layer, hidden, intermediate, bytes
//                     of a record, hash of the table, hash of the header
//   table             XXH64 of each record, [layers, experts]; padded to 4 KiB
//   records           [layers, experts], each of the slot's bytes
//
// Hashes are seeded with the fingerprint, so that a record of another model
// cannot pass for one of this.

// What a pack must fit.
struct PackIdentity {
  uint64_t fingerprint = 0;  // of the model (checkpoint)
  std::string numerics;      // order version and weight format, < 64 bytes
  int32_t num_layers = 0;    // MoE layers
  int32_t num_experts = 0;   // of a layer
  ExpertShape shape;
  WeightFormat format = WeightFormat::kBf16;
  int64_t slot_bytes = 0;  // a multiple of 4096

  friend bool operator==(const PackIdentity&, const PackIdentity&) = default;
};

// The name beside a model; of a quantised format "experts-int8.portolan-pack",
// so that one never stands in for the other.
inline constexpr char kPackFileName[] = "experts.portolan-pack";
std::string PackFileName(WeightFormat format = WeightFormat::kBf16);

// The name in a --pack-dir that serves several models:
// "experts-0123456789abcdef.portolan-pack", or
// "experts-0123456789abcdef-int8.portolan-pack".
std::string PackFileNameFor(uint64_t fingerprint,
                            WeightFormat format = WeightFormat::kBf16);

// The path of a pack file: by fingerprint in `pack_dir`, else PackFileName() in
// it; where `pack_dir` is empty, PackFileName() in `model_dir`. Empty if none
// is there.
std::string FindPack(const std::string& model_dir, const std::string& pack_dir,
                     uint64_t fingerprint,
                     WeightFormat format = WeightFormat::kBf16);

// Writes all experts to `path` by way of a ReplacingFile. Called again after an
// interruption it starts anew. `progress` counts experts.
// Errors: those of `source`; kResourceExhausted (disk full), kUnavailable,
// naming the file. The temporary file is gone after an error.
absl::Status WritePack(
    const std::string& path, const PackIdentity& identity, ExpertSource& source,
    absl::FunctionRef<void(int64_t done, int64_t total)> progress);

// A pack file as a RecordFormat: segments land in the slot itself, Finish()
// verifies the record's hash.
class PackFormat final : public RecordFormat {
 public:
  // Errors: kNotFound; kFailedPrecondition if the pack is stale (of another
  // model, shape, numerics or version), naming the odd field; kDataLoss if it
  // is damaged or truncated. All name the file and the remedy.
  static absl::StatusOr<std::unique_ptr<PackFormat>> Open(
      const std::string& path, const PackIdentity& expected,
      DirectFile::Mode mode = DirectFile::Mode::kDirect);

  std::string name() const override { return "expert pack"; }
  std::span<const DirectFile> files() const override { return {&file_, 1}; }
  size_t staging_bytes() const override { return 0; }
  std::span<const FileSegment> Segments(ExpertId id) const override {
    return {&segments_[Index(id)], 1};
  }
  int64_t LogicalBytes(ExpertId /*id*/) const override {
    return identity_.slot_bytes;
  }
  absl::Status Finish(ExpertId id, std::span<const std::byte> landing,
                      std::span<std::byte> slot) override;

 private:
  PackFormat(DirectFile file, const PackIdentity& identity,
             std::vector<uint64_t> hashes);

  size_t Index(ExpertId id) const;

  const DirectFile file_;
  const PackIdentity identity_;
  const std::vector<uint64_t> hashes_;  // [layers, experts]
  std::vector<FileSegment> segments_;   // [layers, experts]
};

}  // namespace portolan
