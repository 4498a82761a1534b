#include "runtime/model/checkpoint/safetensors.h"

#include <algorithm>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>

#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/checkpoint/strict_json.h"

namespace portolan {
namespace {

constexpr char kSingleFile[] = "model.safetensors";
constexpr char kIndexFile[] = "model.safetensors.index.json";
constexpr size_t kMaxIndexBytes = 256 << 20;

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name[0] != '.' &&
         name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos && name.size() <= 255;
}

absl::StatusOr<std::vector<TensorInfo>> ReadHeader(
    const RandomAccessFile& file) {
  std::array<uint8_t, kSafetensorsPrefixBytes> prefix;
  PORTOLAN_RETURN_IF_ERROR(
      file.Read(0, std::as_writable_bytes(std::span<uint8_t>(prefix))));
  uint64_t length = 0;
  for (size_t i = prefix.size(); i-- > 0;) length = length << 8 | prefix[i];
  if (length > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        file.path(), ": a header of ", length, " bytes at offset 0, at most ",
        kMaxSafetensorsHeaderBytes, " allowed: not safetensors?"));
  }
  if (length > file.size() - kSafetensorsPrefixBytes) {
    return absl::DataLossError(
        absl::StrCat(file.path(), ": ends at offset ", file.size(),
                     " inside its header of ", length, " bytes: truncated?"));
  }
  std::string text(static_cast<size_t>(length), '\0');
  PORTOLAN_RETURN_IF_ERROR(file.Read(
      kSafetensorsPrefixBytes, std::as_writable_bytes(std::span<char>(text))));
  return ParseSafetensorsHeader(file.path(), text, file.size());
}

}  // namespace

absl::StatusOr<std::map<std::string, std::string>> ParseSafetensorsIndex(
    const std::string& file, std::string_view text) {
  PORTOLAN_ASSIGN_OR_RETURN(const nlohmann::json index,
                            ParseJsonObject(file, text));
  const auto weights = index.find("weight_map");
  if (weights == index.end() || !weights->is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, ": field weight_map: missing, or no object"));
  }
  std::map<std::string, std::string> shard_of;
  for (const auto& [tensor, shard] : weights->items()) {
    if (!shard.is_string() || !IsPlainFileName(shard.get<std::string>())) {
      return absl::InvalidArgumentError(
          absl::StrCat(file, ": tensor ", tensor, ": ", shard.dump(),
                       " is not the name of a file in the model's directory"));
    }
    shard_of.emplace(tensor, shard.get<std::string>());
  }
  return shard_of;
}

absl::StatusOr<std::unique_ptr<Checkpoint>> Checkpoint::Open(
    const std::string& dir, ReadObserver observer) {
  std::unique_ptr<Checkpoint> checkpoint(
      new Checkpoint(dir, std::move(observer)));
  absl::Status status = checkpoint->AddFile(kSingleFile);
  if (absl::IsNotFound(status)) {
    const std::string index = absl::StrCat(dir, "/", kIndexFile);
    status = checkpoint->AddShards(index);
    if (absl::IsNotFound(status) && absl::StartsWith(status.message(), index)) {
      return absl::NotFoundError(
          absl::StrCat(dir, ": has neither ", kSingleFile, " nor ", kIndexFile,
                       "; other formats must be converted first"));
    }
  }
  PORTOLAN_RETURN_IF_ERROR(status);
  checkpoint->SortTensors();
  return checkpoint;
}

absl::Status Checkpoint::AddFile(const std::string& name) {
  PORTOLAN_ASSIGN_OR_RETURN(
      RandomAccessFile file,
      RandomAccessFile::Open(absl::StrCat(dir_, "/", name)));
  PORTOLAN_ASSIGN_OR_RETURN(std::vector<TensorInfo> tensors, ReadHeader(file));
  for (TensorInfo& tensor : tensors) {
    tensor.file = static_cast<int32_t>(files_.size());
    tensors_.push_back(std::move(tensor));
  }
  files_.push_back(std::move(file));
  return absl::OkStatus();
}

absl::Status Checkpoint::AddShards(const std::string& index_path) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::string text,
                            ReadTextFile(index_path, kMaxIndexBytes));
  PORTOLAN_ASSIGN_OR_RETURN(const auto shard_of,
                            ParseSafetensorsIndex(index_path, text));
  std::set<std::string> shards;
  for (const auto& [tensor, shard] : shard_of) shards.insert(shard);
  for (const std::string& shard : shards) {
    const absl::Status added = AddFile(shard);
    if (!added.ok()) {
      return absl::Status(added.code(), absl::StrCat("shard of ", index_path,
                                                     ": ", added.message()));
    }
  }
  // What a shard holds beyond its part of the index does not count.
  std::erase_if(tensors_, [&](const TensorInfo& tensor) {
    const auto found = shard_of.find(tensor.name);
    return found == shard_of.end() ||
           !absl::EndsWith(files_[static_cast<size_t>(tensor.file)].path(),
                           absl::StrCat("/", found->second));
  });
  SortTensors();
  for (const auto& [tensor, shard] : shard_of) {
    if (Find(tensor) == nullptr) {
      return absl::InvalidArgumentError(
          absl::StrCat(index_path, ": tensor ", tensor, ": is not in ", shard));
    }
  }
  return absl::OkStatus();
}

void Checkpoint::SortTensors() {
  std::ranges::sort(tensors_, {}, &TensorInfo::name);
}

const TensorInfo* Checkpoint::Find(std::string_view name) const {
  const auto found =
      std::ranges::lower_bound(tensors_, name, {}, &TensorInfo::name);
  return found != tensors_.end() && found->name == name ? &*found : nullptr;
}

absl::StatusOr<const TensorInfo*> Checkpoint::Get(
    const std::string& name, const std::vector<int64_t>& shape) const {
  const TensorInfo* tensor = Find(name);
  if (tensor == nullptr) {
    const std::string searched = files_.size() == 1
                                     ? files_[0].path()
                                     : absl::StrCat(dir_, "/", kIndexFile, " (",
                                                    files_.size(), " shards)");
    return absl::NotFoundError(
        absl::StrCat("tensor ", name, ": not found in ", searched));
  }
  const std::string& file = files_[static_cast<size_t>(tensor->file)].path();
  if (tensor->shape != shape) {
    return absl::InvalidArgumentError(absl::StrCat(
        file, ": tensor ", name, ": wanted shape ", ShapeString(shape),
        ", found ", ShapeString(tensor->shape)));
  }
  if (!LoadableDtype(tensor->dtype)) {
    return absl::UnimplementedError(
        absl::StrCat(file, ": tensor ", name, ": dtype ", tensor->dtype,
                     " is not supported; supported: BF16, F16, F32, F8_E4M3"));
  }
  return tensor;
}

TensorExtent Checkpoint::ExtentOf(const TensorInfo& tensor) const {
  const std::optional<TensorDtype> dtype = LoadableDtype(tensor.dtype);
  PORTOLAN_CHECK(dtype.has_value());
  return {.file = files_[static_cast<size_t>(tensor.file)].path(),
          .offset = tensor.offset,
          .bytes = tensor.bytes,
          .dtype = *dtype};
}

absl::Status Checkpoint::Read(const TensorInfo& tensor, uint64_t begin,
                              std::span<std::byte> out,
                              ReadPurpose purpose) const {
  PORTOLAN_CHECK(begin <= tensor.bytes && out.size() <= tensor.bytes - begin);
  const absl::Status read = ReadCounted(
      files_[static_cast<size_t>(tensor.file)], tensor.offset + begin, out,
      LoadableDtype(tensor.dtype).value_or(TensorDtype::kBf16), purpose);
  if (read.ok()) return read;
  return absl::Status(
      read.code(), absl::StrCat("tensor ", tensor.name, ": ", read.message()));
}

absl::Status Checkpoint::Read(const TensorExtent& extent,
                              std::span<std::byte> out,
                              ReadPurpose purpose) const {
  PORTOLAN_CHECK(out.size() == extent.bytes);
  const auto file =
      std::ranges::find(files_, extent.file, &RandomAccessFile::path);
  if (file == files_.end()) {
    return absl::NotFoundError(
        absl::StrCat(extent.file, ": not a file of ", dir_));
  }
  return ReadCounted(*file, extent.offset, out, extent.dtype, purpose);
}

Checkpoint::BytesRead Checkpoint::bytes_read() const {
  const auto count = [this](ReadPurpose purpose) {
    return bytes_read_[static_cast<size_t>(purpose)].load(
        std::memory_order_relaxed);
  };
  return {.metadata = count(ReadPurpose::kMetadata),
          .dense = count(ReadPurpose::kDense),
          .expert = count(ReadPurpose::kExpert)};
}

absl::Status Checkpoint::ReadCounted(const RandomAccessFile& file,
                                     uint64_t offset, std::span<std::byte> out,
                                     TensorDtype dtype,
                                     ReadPurpose purpose) const {
  bytes_read_[static_cast<size_t>(purpose)].fetch_add(
      out.size(), std::memory_order_relaxed);
  if (observer_) {
    observer_({.file = file.path(),
               .offset = offset,
               .bytes = out.size(),
               .dtype = dtype},
              purpose);
  }
  return file.Read(offset, out);
}

}  // namespace portolan
