#pragma once

#include <memory>
#include <string>
#include <string_view>

#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/tokenizer.h"

namespace portolan {

// The tokenizer that `text`, a tokenizer.json, describes. Its model is "BPE".
// Errors: as Tokenizer::Load().
absl::StatusOr<std::unique_ptr<Tokenizer>> MakeJsonTokenizer(
    std::string_view text, const std::string& file);

}  // namespace portolan
