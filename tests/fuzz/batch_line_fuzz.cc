// Lines of a batch, and of its results: never a crash, and what is accepted has
// a custom_id and a result that is read back.

#include <cstdint>
#include <string>
#include <string_view>

#include "clients/cc/batch.h"
#include "clients/cc/load.h"
#include "runtime/base/check.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  const std::string_view line(reinterpret_cast<const char*>(data), size);
  (void)ParseLoad(line, /*needs_arrivals=*/false);
  (void)SucceededId(line);
  const absl::StatusOr<BatchLine> parsed = ParseBatchLine(line);
  if (!parsed.ok()) return 0;
  PORTOLAN_CHECK(!parsed->custom_id.empty());
  const Transcript transcript;
  const std::string good =
      BatchResult(parsed->custom_id, parsed->request.model(), absl::UnixEpoch(),
                  transcript);
  PORTOLAN_CHECK(SucceededId(good).has_value());
  const std::string bad =
      BatchError(parsed->custom_id, "r", absl::InvalidArgumentError("no"));
  PORTOLAN_CHECK(!SucceededId(bad).has_value());
  return 0;
}
