// Any bytes as a tokenizer.json: an error or a tokenizer that keeps its word.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/base/check.h"
#include "runtime/model/tokenizer/tokenizer.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

void CheckDecoding(const Tokenizer& tokenizer,
                   const std::vector<int32_t>& ids) {
  StreamDecoder stream(tokenizer, /*skip_special=*/false);
  std::string text;
  for (const int32_t id : ids) {
    const std::string_view part = stream.Push(id);
    PORTOLAN_CHECK(!FindInvalidUtf8(part).has_value());
    text += part;
  }
  text += stream.Finish();
  PORTOLAN_CHECK(!FindInvalidUtf8(text).has_value());
  PORTOLAN_CHECK(text == tokenizer.Decode(ids, /*skip_special=*/false));
}

// Encodes `text` whatever it holds, and decodes what came of it.
void CheckRoundTrip(const Tokenizer& tokenizer, std::string_view text) {
  const auto ids = tokenizer.Encode(text, /*add_special_tokens=*/true);
  if (!ids.ok()) return;
  for (const int32_t id : *ids) {
    PORTOLAN_CHECK(id >= 0 && id < tokenizer.vocab_size());
    PORTOLAN_CHECK(tokenizer.IdToToken(id).has_value());
  }
  CheckDecoding(tokenizer, *ids);
}

}  // namespace
}  // namespace portolan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view json(reinterpret_cast<const char*>(data), size);
  const auto tokenizer = portolan::Tokenizer::FromJson(json, "tokenizer.json");
  if (!tokenizer.ok()) {
    PORTOLAN_CHECK(tokenizer.status().message().find("tokenizer.json") !=
                   absl::string_view::npos);
    return 0;
  }
  portolan::CheckRoundTrip(**tokenizer, " a ab \u00e9\n<s>  b1.");
  portolan::CheckRoundTrip(**tokenizer, json.substr(size / 3, 96));
  portolan::CheckDecoding(**tokenizer, {-1, 0, 1, 2, 3, 2, 1, 0, 1 << 30});
  return 0;
}
