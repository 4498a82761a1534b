#include "launcher/output_files.h"

#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <filesystem>
#include <map>
#include <optional>
#include <system_error>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

absl::Status CheckCanWriteOne(const NamedFile& wanted) {
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

// Files by what the system knows them by, for those of a thousand ranks: each
// is looked at once.
class KnownFiles {
 public:
  // The one that is the same file as `file`, which is kept if there is none.
  const NamedFile* FindOrKeep(const NamedFile& file) {
    const Names names = NamesOf(file);
    if (const NamedFile* known = Find(names)) return known;
    Keep(names, file);
    return nullptr;
  }
  const NamedFile* Find(const NamedFile& file) const {
    return Find(NamesOf(file));
  }

 private:
  // A file that is there has a number, however it is linked; one that is not
  // there yet only its path.
  struct Names {
    std::optional<std::pair<dev_t, ino_t>> number;
    std::filesystem::path path;
  };

  static Names NamesOf(const NamedFile& file) {
    Names names;
    struct stat info;
    if (stat(file.path.c_str(), &info) == 0) {
      names.number = {info.st_dev, info.st_ino};
    }
    std::error_code ignored;
    names.path = std::filesystem::weakly_canonical(file.path, ignored);
    return names;
  }
  const NamedFile* Find(const Names& names) const {
    if (names.number.has_value()) {
      const auto known = by_number_.find(*names.number);
      if (known != by_number_.end()) return known->second;
    }
    const auto known = by_path_.find(names.path);
    return known == by_path_.end() ? nullptr : known->second;
  }
  void Keep(const Names& names, const NamedFile& file) {
    if (names.number.has_value()) by_number_.emplace(*names.number, &file);
    by_path_.emplace(names.path, &file);
  }

  std::map<std::pair<dev_t, ino_t>, const NamedFile*> by_number_;
  std::map<std::filesystem::path, const NamedFile*> by_path_;
};

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
  KnownFiles inputs;
  for (const NamedFile& file : read) {
    if (!file.path.empty()) inputs.FindOrKeep(file);
  }
  KnownFiles outputs;
  for (const NamedFile& file : written) {
    if (file.path.empty()) continue;
    PORTOLAN_RETURN_IF_ERROR(CheckCanWriteOne(file));
    if (const NamedFile* twin = outputs.FindOrKeep(file)) {
      return absl::InvalidArgumentError(absl::StrCat(
          View(twin->flag), " and ", View(file.flag), " would both write ",
          file.path, ": give each a file of its own"));
    }
    if (const NamedFile* input = inputs.Find(file)) {
      return absl::InvalidArgumentError(
          absl::StrCat(View(file.flag), ": cannot write ", file.path,
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
