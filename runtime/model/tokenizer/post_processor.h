#pragma once

#include <cstdint>
#include <vector>

#include "absl/status/statusor.h"
#include "runtime/model/tokenizer/json_field.h"

namespace portolan {

// What tokenizer.json's "post_processor" puts around one sequence when special
// tokens are asked for: beginning- and end-of-text marks.
struct SpecialTokenFrame {
  std::vector<int32_t> prefix;
  std::vector<int32_t> suffix;
};

// Sequence, ByteLevel (which moves offsets only, so does nothing here),
// TemplateProcessing (its template for a single sequence). `end_id` bounds the
// ids of special tokens.
// Errors: kInvalidArgument naming file and path, also for any other type.
absl::StatusOr<SpecialTokenFrame> ReadPostProcessor(const JsonField& field,
                                                    int32_t end_id);

}  // namespace portolan
