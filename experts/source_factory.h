#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/status/statusor.h"
#include "experts/chunked_source.h"
#include "experts/expert_extents.h"
#include "experts/expert_pack.h"
#include "experts/file_reader.h"
#include "experts/link_model.h"

namespace portolan {

struct ExpertSourceOptions {
  std::string model_dir;
  std::string pack_dir = {};  // --pack-dir, may be empty
  FileReaderKind reader = FileReaderKind::kAuto;
  // Chunks under way: four of half a MiB keep an NVMe device busy.
  int depth = 4;
  std::optional<LinkSpec> link = {};  // --expert-link: throttled
  // --expert-source host: all experts are loaded into host memory first.
  bool host_memory = false;
};

struct ChosenSource {
  std::unique_ptr<ChunkedSource> source;
  // For the user: a pack that was found and is of no use, and why.
  std::vector<std::string> notices;
};

// The pack that FindPack() finds; null if there is none and the checkpoint
// serves as well. Where --pack-dir or a quantised format ask for a pack, one
// that is missing, stale or damaged is an error, elsewhere a notice.
// Errors: kNotFound naming directory, files and remedy; those of
// PackFormat::Open().
absl::StatusOr<std::unique_ptr<PackFormat>> OpenPack(
    const ExpertSourceOptions& options, const PackIdentity& identity,
    std::vector<std::string>& notices);

// The source that a rank's experts come from: an expert pack (OpenPack), else
// the checkpoint, or a copy of either in host memory; throttled if a link is
// given. `extents_of` says where an expert lies in the checkpoint.
// Errors: those of OpenPack(), CheckpointFormat::Open(), MakeFileReader() and
// HostSource::Load().
absl::StatusOr<ChosenSource> MakeExpertSource(
    const ExpertSourceOptions& options, const PackIdentity& identity,
    std::span<const ExpertId> owned,
    absl::FunctionRef<ExpertExtents(ExpertId)> extents_of);

}  // namespace portolan
