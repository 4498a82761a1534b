#include "experts/source_factory.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "experts/checkpoint_format.h"
#include "experts/file_expert_source.h"
#include "experts/host_source.h"
#include "experts/steady_now.h"
#include "experts/throttled_source.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// The format of a usable pack, else null, with a notice if one is there.
std::unique_ptr<RecordFormat> UsablePack(const ExpertSourceOptions& options,
                                         const PackIdentity& identity,
                                         std::vector<std::string>& notices) {
  const std::string path =
      FindPack(options.model_dir, options.pack_dir, identity.fingerprint);
  if (path.empty()) return nullptr;
  absl::StatusOr<std::unique_ptr<PackFormat>> pack =
      PackFormat::Open(path, identity);
  if (pack.ok()) return *std::move(pack);
  notices.push_back(absl::StrCat(pack.status().message(),
                                 "; using the checkpoint meanwhile"));
  return nullptr;
}

// The pack without which experts of a quantised format do not exist.
absl::StatusOr<std::unique_ptr<RecordFormat>> QuantisedPack(
    const ExpertSourceOptions& options, const PackIdentity& identity) {
  const std::string path = FindPack(options.model_dir, options.pack_dir,
                                    identity.fingerprint, identity.format);
  if (!path.empty()) return PackFormat::Open(path, identity);
  const std::string format(WeightFormatName(identity.format));
  return absl::NotFoundError(absl::StrCat(
      "there is no pack of ", format, " experts (",
      PackFileName(identity.format), ") in ", options.model_dir,
      options.pack_dir.empty() ? "" : absl::StrCat(" or ", options.pack_dir),
      "; write it with portolan pack --quantize ", format));
}

}  // namespace

absl::StatusOr<ChosenSource> MakeExpertSource(
    const ExpertSourceOptions& options, const PackIdentity& identity,
    std::span<const ExpertId> owned,
    absl::FunctionRef<ExpertExtents(ExpertId)> extents_of) {
  ChosenSource chosen;
  std::unique_ptr<RecordFormat> format;
  if (identity.format != WeightFormat::kBf16) {
    PORTOLAN_ASSIGN_OR_RETURN(format, QuantisedPack(options, identity));
  } else {
    format = UsablePack(options, identity, chosen.notices);
  }
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
