#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"

namespace portolan {

// A file that a flag names; an empty path is one that nobody asked for.
struct NamedFile {
  std::string_view flag;
  std::string path;
};

// Looks before a long wait whether a command can write at its end what it is
// to write, and that no file of its user's is lost by it: none is written twice
// or read as well. Files are the same if the system says so, by whatever names
// and links. A file that is read, changed and written again, as a history is,
// belongs to `written` alone.
// Errors: kNotFound, kPermissionDenied, kInvalidArgument naming flags and path.
absl::Status CheckCanWrite(const std::vector<NamedFile>& written,
                           const std::vector<NamedFile>& read);

// The files of a model or of a pack that `directory` holds: config, weights,
// tokenizer, packs. None where there is no such directory.
std::vector<NamedFile> ModelFilesIn(std::string_view flag,
                                    const std::string& directory);

}  // namespace portolan
