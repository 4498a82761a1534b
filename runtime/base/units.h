#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"

namespace portolan {

// "64MiB", "1.5GB", "4096": bytes. Decimal units are powers of 1000, binary
// ones (KiB, MiB, GiB, TiB) of 1024.
// Errors: kInvalidArgument naming the text.
absl::StatusOr<int64_t> ParseBytes(std::string_view text);

// "3.2 GiB", "512 B": for people.
std::string FormatBytes(uint64_t bytes);

}  // namespace portolan
