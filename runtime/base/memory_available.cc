#include "runtime/base/memory_available.h"

#include <algorithm>
#include <fstream>
#include <limits>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace portolan {
namespace {

constexpr int64_t kUnknown = std::numeric_limits<int64_t>::max();

// Where one version of cgroups keeps what is asked here.
struct CgroupFiles {
  const char* mount;
  const char* limit;
  const char* usage;
  // Of memory.stat: page cache of the group and those below it.
  const char* inactive;
  const char* active;
};

constexpr CgroupFiles kVersion1 = {
    "/sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes",
    "total_inactive_file", "total_active_file"};
constexpr CgroupFiles kVersion2 = {"/sys/fs/cgroup", "memory.max",
                                   "memory.current", "inactive_file",
                                   "active_file"};

std::string ReadAll(const std::string& path) {
  std::ifstream file(path);
  std::ostringstream text;
  text << file.rdbuf();
  return text.str();
}

// The number in a file; nullopt if there is none ("max").
std::optional<int64_t> ReadNumber(const std::string& path) {
  uint64_t value = 0;
  if (!absl::SimpleAtoi(ReadAll(path), &value)) return std::nullopt;
  return static_cast<int64_t>(std::min(value, static_cast<uint64_t>(kUnknown)));
}

// The number behind `key` in lines of "key value".
int64_t NumberBehind(const std::string& text, std::string_view key) {
  for (const absl::string_view line : absl::StrSplit(text, '\n')) {
    const std::vector<absl::string_view> words =
        absl::StrSplit(line, ' ', absl::SkipWhitespace());
    int64_t value = 0;
    if (words.size() >= 2 &&
        std::string_view(words[0].data(), words[0].size()) == key &&
        absl::SimpleAtoi(words[1], &value)) {
      return value;
    }
  }
  return 0;
}

int64_t LeftInGroup(const std::string& directory, const CgroupFiles& files) {
  const auto limit = ReadNumber(absl::StrCat(directory, "/", files.limit));
  const auto usage = ReadNumber(absl::StrCat(directory, "/", files.usage));
  if (!limit || !usage) return kUnknown;
  const std::string stat = ReadAll(directory + "/memory.stat");
  const int64_t cache =
      NumberBehind(stat, files.inactive) + NumberBehind(stat, files.active);
  return std::max<int64_t>(0, *limit - *usage + std::min(cache, *usage));
}

// The least that `group` and those above it leave.
int64_t LeftOnPath(const std::string& root, const CgroupFiles& files,
                   std::string group) {
  int64_t left = kUnknown;
  while (true) {
    left = std::min(left, LeftInGroup(root + files.mount + group, files));
    const size_t slash = group.rfind('/');
    if (slash == std::string::npos) return left;
    group.resize(slash);
  }
}

int64_t LeftInGroups(const std::string& root) {
  int64_t left = kUnknown;
  const std::string groups = ReadAll(root + "/proc/self/cgroup");
  for (const absl::string_view line : absl::StrSplit(groups, '\n')) {
    // "4:memory:/path" (version 1) or "0::/path" (version 2).
    const std::vector<std::string> parts =
        absl::StrSplit(line, absl::MaxSplits(':', 2));
    if (parts.size() != 3) continue;
    const std::vector<absl::string_view> controllers =
        absl::StrSplit(parts[1], ',');
    const bool version1 =
        std::ranges::find(controllers, "memory") != controllers.end();
    if (!version1 && !parts[1].empty()) continue;
    left = std::min(
        left, LeftOnPath(root, version1 ? kVersion1 : kVersion2, parts[2]));
  }
  return left;
}

int64_t LeftOnMachine(const std::string& root) {
  const int64_t kib =
      NumberBehind(ReadAll(root + "/proc/meminfo"), "MemAvailable:");
  return kib == 0 ? kUnknown : kib * 1024;
}

}  // namespace

int64_t AvailableMemory(const std::string& root) {
  return std::min(LeftOnMachine(root), LeftInGroups(root));
}

}  // namespace portolan
