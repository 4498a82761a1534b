#include "experts/expert_pack.h"

#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "experts/hash64.h"
#include "experts/pack_header.h"
#include "experts/replacing_file.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

constexpr uint64_t kFlushBytes = 64 << 20;

absl::Status WithRemedy(const absl::Status& written) {
  if (!absl::IsResourceExhausted(written)) return written;
  return absl::ResourceExhaustedError(absl::StrCat(
      written.message(), "; free space or name another --pack-dir"));
}

constexpr char kExtension[] = ".portolan-pack";

std::string FormatSuffix(WeightFormat format) {
  if (format == WeightFormat::kBf16) return "";
  return absl::StrCat("-", std::string(WeightFormatName(format)));
}

// Up to `bytes` from the start of the file.
absl::StatusOr<std::vector<std::byte>> ReadHead(const std::string& path,
                                                size_t bytes) {
  std::FILE* file = std::fopen(path.c_str(), "rb");
  if (file == nullptr) {
    return absl::NotFoundError(absl::StrCat("cannot open expert pack ", path,
                                            ": ", std::strerror(errno)));
  }
  std::vector<std::byte> head(bytes);
  head.resize(std::fread(head.data(), 1, head.size(), file));
  std::fclose(file);
  return head;
}

}  // namespace

std::string PackFileName(WeightFormat format) {
  if (format == WeightFormat::kBf16) return kPackFileName;
  return absl::StrCat("experts", FormatSuffix(format), kExtension);
}

std::string PackFileNameFor(uint64_t fingerprint, WeightFormat format) {
  return absl::StrFormat("experts-%016x%s%s", fingerprint, FormatSuffix(format),
                         kExtension);
}

std::string FindPack(const std::string& model_dir, const std::string& pack_dir,
                     uint64_t fingerprint, WeightFormat format) {
  std::vector<std::string> candidates;
  if (!pack_dir.empty()) {
    candidates.push_back(
        absl::StrCat(pack_dir, "/", PackFileNameFor(fingerprint, format)));
    candidates.push_back(absl::StrCat(pack_dir, "/", PackFileName(format)));
  } else {
    candidates.push_back(absl::StrCat(model_dir, "/", PackFileName(format)));
  }
  for (std::string& path : candidates) {
    if (access(path.c_str(), F_OK) == 0) return std::move(path);
  }
  return "";
}

absl::Status WritePack(
    const std::string& path, const PackIdentity& identity, ExpertSource& source,
    absl::FunctionRef<void(int64_t done, int64_t total)> progress) {
  const auto slot_bytes = static_cast<uint64_t>(identity.slot_bytes);
  PORTOLAN_CHECK(slot_bytes > 0 && slot_bytes % kDirectAlignment == 0);
  PORTOLAN_ASSIGN_OR_RETURN(const AlignedBuffer slot,
                            AlignedBuffer::Allocate(slot_bytes));
  ReplacingFile file(path);
  PORTOLAN_RETURN_IF_ERROR(WithRemedy(file.Create()));

  const int64_t total = int64_t{identity.num_layers} * identity.num_experts;
  std::vector<uint64_t> hashes;
  uint64_t end = PackRecordsBegin(identity);
  uint64_t flushed = 0;
  for (int64_t i = 0; i < total; ++i) {
    const ExpertId id{static_cast<int32_t>(i / identity.num_experts),
                      static_cast<int32_t>(i % identity.num_experts)};
    PORTOLAN_RETURN_IF_ERROR(source.Read(id, slot.bytes()));
    hashes.push_back(Hash64(slot.bytes(), identity.fingerprint));
    PORTOLAN_RETURN_IF_ERROR(WithRemedy(file.Write(end, slot.bytes())));
    end += slot_bytes;
    if (end - flushed >= kFlushBytes) file.Flush(flushed = end);
    progress(i + 1, total);
  }
  PORTOLAN_RETURN_IF_ERROR(
      WithRemedy(file.Write(0, EncodePackHeader(identity, hashes))));
  return WithRemedy(file.Commit());
}

absl::StatusOr<std::unique_ptr<PackFormat>> PackFormat::Open(
    const std::string& path, const PackIdentity& expected,
    DirectFile::Mode mode) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<std::byte> head,
                            ReadHead(path, PackRecordsBegin(expected)));
  PORTOLAN_ASSIGN_OR_RETURN(std::vector<uint64_t> hashes,
                            DecodePackHeader(path, head, expected));
  PORTOLAN_ASSIGN_OR_RETURN(DirectFile file, DirectFile::Open(path, mode));
  const uint64_t wanted =
      PackRecordsBegin(expected) +
      hashes.size() * static_cast<uint64_t>(expected.slot_bytes);
  if (file.Size() != static_cast<int64_t>(wanted)) {
    return absl::DataLossError(
        absl::StrCat("expert pack ", path, " is damaged: it has ", file.Size(),
                     " of ", wanted, " bytes", PackRemedy(expected.format)));
  }
  return std::unique_ptr<PackFormat>(
      new PackFormat(std::move(file), expected, std::move(hashes)));
}

PackFormat::PackFormat(DirectFile file, const PackIdentity& identity,
                       std::vector<uint64_t> hashes)
    : file_(std::move(file)), identity_(identity), hashes_(std::move(hashes)) {
  const auto slot_bytes = static_cast<uint64_t>(identity_.slot_bytes);
  uint64_t offset = PackRecordsBegin(identity_);
  for (size_t i = 0; i < hashes_.size(); ++i, offset += slot_bytes) {
    segments_.push_back({.file = 0,
                         .offset = offset,
                         .bytes = slot_bytes,
                         .landing_offset = 0,
                         .needed_end = offset + slot_bytes});
  }
}

size_t PackFormat::Index(ExpertId id) const {
  PORTOLAN_CHECK(id.layer >= 0 && id.layer < identity_.num_layers &&
                 id.expert >= 0 && id.expert < identity_.num_experts);
  return static_cast<size_t>(id.layer) *
             static_cast<size_t>(identity_.num_experts) +
         static_cast<size_t>(id.expert);
}

absl::Status PackFormat::Finish(ExpertId id, std::span<const std::byte> landing,
                                std::span<std::byte> slot) {
  PORTOLAN_CHECK(landing.data() == slot.data());
  const size_t index = Index(id);
  if (Hash64(slot, identity_.fingerprint) == hashes_[index]) {
    return absl::OkStatus();
  }
  return absl::DataLossError(absl::StrCat(
      "expert pack ", file_.path(), " is damaged: the record of expert ",
      ToString(id), " at byte ", segments_[index].offset, " has a wrong hash",
      PackRemedy(identity_.format)));
}

}  // namespace portolan
