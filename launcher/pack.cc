#include "launcher/pack.h"

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <string>
#include <utility>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "experts/expert_pack.h"
#include "experts/file_expert_source.h"
#include "experts/pack_header.h"
#include "experts/quantised_expert.h"
#include "launcher/console.h"
#include "launcher/flags.h"
#include "launcher/job.h"
#include "launcher/wiring.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/units.h"
#include "runtime/model/checkpoint/expert_reader.h"
#include "runtime/model/checkpoint/fingerprint.h"

namespace portolan {
namespace {

struct PackOptions {
  std::string model_dir;
  std::string pack_dir;
  WeightFormat format = WeightFormat::kBf16;
  bool verify = false;
  bool json = false;
};

// The checkpoint's experts, by MoE layers alone.
class PackedModel final : public ExpertSource {
 public:
  explicit PackedModel(const Model& model)
      : layers_(model.config.MoeLayers()),
        experts_(model.experts, *model.checkpoint) {}

  absl::Status Read(ExpertId id, std::span<std::byte> slot) override {
    return experts_.Read({layers_[static_cast<size_t>(id.layer)], id.expert},
                         slot);
  }

 private:
  const std::vector<int32_t> layers_;
  CheckpointExpertSource experts_;
};

int64_t PackBytes(const PackIdentity& identity) {
  return static_cast<int64_t>(PackRecordsBegin(identity)) +
         int64_t{identity.num_layers} * identity.num_experts *
             identity.slot_bytes;
}

// Says so before the wait if the disk cannot hold the pack.
absl::Status CheckDiskSpace(const std::string& path, int64_t bytes) {
  std::error_code error;
  const std::filesystem::path directory =
      std::filesystem::path(path).parent_path();
  const std::filesystem::space_info space =
      std::filesystem::space(directory, error);
  if (error || space.available >= static_cast<uintmax_t>(bytes)) {
    return absl::OkStatus();  // writing tells what is wrong, if anything is
  }
  return absl::ResourceExhaustedError(absl::StrCat(
      "the pack takes ", FormatBytes(static_cast<uint64_t>(bytes)), ", ",
      directory.string(), " has ", FormatBytes(space.available),
      " left; free space or name another --pack-dir"));
}

absl::Status WriteModelPack(const Model& model, const PackIdentity& identity,
                            const std::string& path, bool json) {
  PORTOLAN_RETURN_IF_ERROR(CheckDiskSpace(path, PackBytes(identity)));
  PackedModel experts(model);
  const bool quantise = identity.format != WeightFormat::kBf16;
  QuantisingSource quantised(identity.shape, identity.format, experts);
  {
    Progress progress("Packing experts", /*silent=*/false);
    PORTOLAN_RETURN_IF_ERROR(
        WritePack(path, identity,
                  quantise ? static_cast<ExpertSource&>(quantised) : experts,
                  [&](int64_t done, int64_t total) {
                    progress.Update(done * identity.slot_bytes,
                                    total * identity.slot_bytes);
                  }));
  }
  if (json) {
    std::printf("%s\n",
                QuantisationJson(identity.format, quantised.errors()).c_str());
    return absl::OkStatus();
  }
  if (quantise) {
    std::printf("%s", FormatQuantisation(quantised.errors()).c_str());
  }
  std::printf(
      "%s: %lld experts, %s\n", path.c_str(),
      static_cast<long long>(identity.num_layers) * identity.num_experts,
      FormatBytes(static_cast<uint64_t>(PackBytes(identity))).c_str());
  return absl::OkStatus();
}

// Reads every record and compares its hash.
absl::Status VerifyPack(const PackIdentity& identity, const std::string& path) {
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<PackFormat> pack,
                            PackFormat::Open(path, identity));
  PORTOLAN_ASSIGN_OR_RETURN(std::unique_ptr<FileReader> reader,
                            MakeFileReader(FileReaderKind::kAuto, 4));
  FileExpertSource source(std::move(pack), std::move(reader));
  PORTOLAN_ASSIGN_OR_RETURN(
      const AlignedBuffer slot,
      AlignedBuffer::Allocate(static_cast<size_t>(identity.slot_bytes)));
  Progress progress("Verifying the pack", /*silent=*/false);
  const int64_t total = int64_t{identity.num_layers} * identity.num_experts;
  for (int64_t i = 0; i < total; ++i) {
    const ExpertId id{static_cast<int32_t>(i / identity.num_experts),
                      static_cast<int32_t>(i % identity.num_experts)};
    PORTOLAN_RETURN_IF_ERROR(LoadExpert(source, id, {}, slot.bytes()));
    progress.Update((i + 1) * identity.slot_bytes, total * identity.slot_bytes);
  }
  std::printf("%s: %lld experts, all sound\n", path.c_str(),
              static_cast<long long>(total));
  return absl::OkStatus();
}

absl::Status RunPack(const PackOptions& options) {
  PORTOLAN_ASSIGN_OR_RETURN(Model model, OpenModel(options.model_dir));
  TellNotice(model);
  PORTOLAN_ASSIGN_OR_RETURN(model.fingerprint,
                            ModelFingerprint(model.config, *model.checkpoint));
  const PackIdentity identity = PackIdentityOf(model, options.format);
  if (options.verify) {
    const std::string path = FindPack(options.model_dir, options.pack_dir,
                                      model.fingerprint, options.format);
    if (path.empty()) {
      return absl::NotFoundError(absl::StrCat(
          "there is no ",
          options.format == WeightFormat::kBf16
              ? ""
              : absl::StrCat(std::string(WeightFormatName(options.format)),
                             " "),
          "expert pack for ", options.model_dir,
          options.pack_dir.empty() ? "" : " in " + options.pack_dir,
          "; write one with portolan pack"));
    }
    return VerifyPack(identity, path);
  }
  const std::string path =
      options.pack_dir.empty()
          ? absl::StrCat(options.model_dir, "/", PackFileName(options.format))
          : absl::StrCat(options.pack_dir, "/",
                         PackFileNameFor(model.fingerprint, options.format));
  return WriteModelPack(model, identity, path, options.json);
}

}  // namespace

void AddPackCommand(CLI::App& app, int& exit_code) {
  auto options = std::make_shared<PackOptions>();
  CLI::App* command = app.add_subcommand(
      "pack",
      "Write a model's experts as the kernels read them: a load is one read");
  AddFlag(*command, "--model", options->model_dir,
          "Directory of a Hugging Face model")
      ->required()
      ->check(CLI::ExistingDirectory);
  AddFlag(*command, "--pack-dir", options->pack_dir,
          "Where to (default: beside the model, where generate finds "
          "it)")
      ->check(CLI::ExistingDirectory);
  CLI::Option* const quantize =
      AddSetter<std::string>(
          *command, "--quantize",
          [options](const std::string& text) {
            options->format = ParseWeightFormat(text).value();
          },
          "int8 or int4: groups of 32 inputs with a scale each, 1.03 or 0.53 "
          "bytes a weight instead of 2; used only by --weights int8 or int4")
          ->check(CLI::IsMember({"int8", "int4"}));
  CLI::Option* const json =
      AddSwitch(*command, "--json", options->json,
                "What quantising cost, by tensor, as JSON")
          ->needs(quantize);
  AddSwitch(*command, "--verify", options->verify,
            "Write nothing; check every record of the pack there is")
      ->excludes(json);
  command->callback(
      [options, &exit_code] { exit_code = Report(RunPack(*options)); });
}

}  // namespace portolan
