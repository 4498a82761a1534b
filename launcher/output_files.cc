#include "launcher/output_files.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <system_error>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

absl::Status CheckCanWriteOne(const NamedFile& wanted) {
  if (wanted.path.empty()) return absl::OkStatus();
  const auto refuse = [&](absl::StatusCode code, const char* why) {
    return absl::Status(code, absl::StrCat(View(wanted.flag), ": cannot write ",
                                           wanted.path, ": ", why));
  };
  const std::filesystem::path file(wanted.path);
  const std::string folder =
      file.has_parent_path() ? file.parent_path().string() : ".";
  std::error_code ignored;
  if (std::filesystem::is_directory(file, ignored)) {
    return refuse(absl::StatusCode::kInvalidArgument, "it is a directory");
  }
  if (!std::filesystem::is_directory(folder, ignored)) {
    return refuse(absl::StatusCode::kNotFound, "there is no such directory");
  }
  const bool exists = std::filesystem::exists(file, ignored);
  if (access(exists ? wanted.path.c_str() : folder.c_str(), W_OK) != 0) {
    return refuse(absl::StatusCode::kPermissionDenied, "permission denied");
  }
  return absl::OkStatus();
}

// Also of files that are not there yet.
bool AreOneFile(const NamedFile& one, const NamedFile& other) {
  if (one.path.empty() || other.path.empty()) return false;
  std::error_code ignored;
  return std::filesystem::equivalent(one.path, other.path, ignored) ||
         std::filesystem::weakly_canonical(one.path, ignored) ==
             std::filesystem::weakly_canonical(other.path, ignored);
}

bool IsModelFile(const std::string& name) {
  constexpr std::array<std::string_view, 3> kEnds = {
      ".safetensors", ".safetensors.index.json", ".portolan-pack"};
  constexpr std::array<std::string_view, 5> kNames = {
      "config.json", "generation_config.json", "special_tokens_map.json",
      "vocab.json", "merges.txt"};
  return name.starts_with("tokenizer") ||
         std::ranges::find(kNames, name) != kNames.end() ||
         std::ranges::any_of(
             kEnds, [&](std::string_view end) { return name.ends_with(end); });
}

}  // namespace

absl::Status CheckCanWrite(const std::vector<NamedFile>& written,
                           const std::vector<NamedFile>& read) {
  for (auto file = written.begin(); file != written.end(); ++file) {
    PORTOLAN_RETURN_IF_ERROR(CheckCanWriteOne(*file));
    const auto is_it = [&](const NamedFile& other) {
      return AreOneFile(*file, other);
    };
    if (const auto twin = std::find_if(written.begin(), file, is_it);
        twin != file) {
      return absl::InvalidArgumentError(absl::StrCat(
          View(twin->flag), " and ", View(file->flag), " would both write ",
          file->path, ": give each a file of its own"));
    }
    if (const auto input = std::ranges::find_if(read, is_it);
        input != read.end()) {
      return absl::InvalidArgumentError(
          absl::StrCat(View(file->flag), ": cannot write ", file->path,
                       ": it is ", input->path, ", which ", View(input->flag),
                       " reads; name another file"));
    }
  }
  return absl::OkStatus();
}

std::vector<NamedFile> ModelFilesIn(std::string_view flag,
                                    const std::string& directory) {
  std::vector<NamedFile> files;
  if (directory.empty()) return files;
  std::error_code error;
  for (std::filesystem::directory_iterator it(directory, error), end;
       !error && it != end; it.increment(error)) {
    if (IsModelFile(it->path().filename().string())) {
      files.push_back({flag, it->path().string()});
    }
  }
  return files;
}

}  // namespace portolan
