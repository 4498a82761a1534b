#include "experts/source_factory.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "experts/checkpoint_format.h"
#include "experts/file_expert_source.h"
#include "experts/host_source.h"
#include "experts/throttled_source.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/steady_now.h"

namespace portolan {
namespace {

// There is none of the pack that must be there.
absl::Status NoPack(const ExpertSourceOptions& options,
                    const PackIdentity& identity) {
  const bool quantised = identity.format != WeightFormat::kBf16;
  const std::string command = absl::StrCat(
      "`portolan pack",
      quantised ? absl::StrCat(" --quantize ",
                               std::string(WeightFormatName(identity.format)))
                : "",
      options.pack_dir.empty() ? "" : " --pack-dir " + options.pack_dir, "`");
  if (options.pack_dir.empty()) {
    return absl::NotFoundError(absl::StrCat(
        "there is no pack of ", std::string(WeightFormatName(identity.format)),
        " experts (", PackFileName(identity.format), ") in ", options.model_dir,
        "; write it with ", command));
  }
  return absl::NotFoundError(absl::StrCat(
      "--pack-dir ", options.pack_dir, " holds no pack of this model: neither ",
      PackFileNameFor(identity.fingerprint, identity.format), " nor ",
      PackFileName(identity.format), "; write it with ", command,
      ", or drop --pack-dir"));
}

}  // namespace

absl::StatusOr<std::unique_ptr<PackFormat>> OpenPack(
    const ExpertSourceOptions& options, const PackIdentity& identity,
    std::vector<std::string>& notices) {
  const bool must_be =
      !options.pack_dir.empty() || identity.format != WeightFormat::kBf16;
  const std::string path = FindPack(options.model_dir, options.pack_dir,
                                    identity.fingerprint, identity.format);
  if (path.empty() && must_be) return NoPack(options, identity);
  if (path.empty()) return nullptr;
  absl::StatusOr<std::unique_ptr<PackFormat>> pack =
      PackFormat::Open(path, identity);
  if (pack.ok() || must_be) return pack;
  notices.push_back(absl::StrCat(pack.status().message(),
                                 "; using the checkpoint meanwhile"));
  return nullptr;
}

absl::StatusOr<ChosenSource> MakeExpertSource(
    const ExpertSourceOptions& options, const PackIdentity& identity,
    std::span<const ExpertId> owned,
    absl::FunctionRef<ExpertExtents(ExpertId)> extents_of) {
  ChosenSource chosen;
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<RecordFormat> format,
                            OpenPack(options, identity, chosen.notices));
  if (format == nullptr) {
    PORTOLAN_ASSIGN_OR_RETURN(
        format, CheckpointFormat::Open(identity.shape, owned, extents_of));
  }
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<FileReader> reader,
                            MakeFileReader(options.reader, options.depth));
  chosen.source =
      std::make_unique<FileExpertSource>(std::move(format), std::move(reader));
  if (options.host_memory) {
    const std::unique_ptr<ChunkedSource> files = std::move(chosen.source);
    PORTOLAN_ASSIGN_OR_RETURN(
        chosen.source,
        HostSource::Load(*files, owned,
                         static_cast<size_t>(identity.slot_bytes),
                         [](int64_t, int64_t) {}));
  }
  if (options.link) {
    chosen.source = std::make_unique<ThrottledSource>(
        std::move(chosen.source), *options.link, identity.slot_bytes, SteadyNow,
        /*spin=*/absl::Microseconds(60));
  }
  return chosen;
}

}  // namespace portolan
