// Requests and rank messages from anywhere, as they come off the wire: refused
// with a status that names a field, or safe to compute with; never a crash.

#include <cstddef>
#include <cstdint>

#include "cluster/coordinator/params.h"
#include "cluster/coordinator/token_log.h"
#include "cluster/coordinator/validation.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

void CheckGenerate(const uint8_t* data, int size) {
  v1::GenerateRequest request;
  if (!request.ParseFromArray(data, size)) return;
  const RequestLimits limits;
  const absl::Status status = ValidateGenerate(request, limits);
  if (!status.ok()) {
    PORTOLAN_CHECK(!status.message().empty());
    return;
  }
  PORTOLAN_CHECK(PromptTokens(request) > 0);
  PORTOLAN_CHECK(PromptTokens(request) <= limits.max_prompt_bytes);
  const v1::SamplingParams params =
      MergeParams(request.params(), v1::SamplingParams(), 1);
  PORTOLAN_CHECK(params.temperature() >= 0 && params.temperature() <= 100);
  PORTOLAN_CHECK(params.top_p() > 0 && params.top_p() <= 1);
  PORTOLAN_CHECK(params.min_p() >= 0 && params.min_p() <= 1);
  PORTOLAN_CHECK(params.max_tokens() > 0);
  PORTOLAN_CHECK(CheckUnknownFields(request).ok());
  v1::ModelIdentity model;
  model.set_vocab_size(100);
  model.set_max_context(50);
  if (!ValidateForModel(request, model).ok()) return;
  for (const int32_t id : request.tokens().ids()) {
    PORTOLAN_CHECK(id >= 0 && id < 100);
  }
}

void CheckRankMessage(const uint8_t* data, int size) {
  v1::RankMessage message;
  if (!message.ParseFromArray(data, size)) return;
  if (!CheckUnknownFields(message).ok()) return;
  if (message.has_register_() && ValidateRegister(message.register_()).ok()) {
    PORTOLAN_CHECK(message.register_().rank() <
                   message.register_().world_size());
  }
  for (const v1::TokenDelta& delta : message.tokens().deltas()) {
    if (!ValidateDelta(delta).ok() || delta.offset() != 0) continue;
    TokenLog log;
    log.Append(delta);
    if (delta.has_finish()) log.Finish(delta.finish());
    v1::GenerateResponse read;
    for (int64_t at = 0; at < log.size(); at = log.Read(at, read)) read.Clear();
    PORTOLAN_CHECK(log.size() == delta.token_ids_size());
  }
}

void CheckOthers(const uint8_t* data, int size) {
  v1::ListRequest list;
  if (list.ParseFromArray(data, size)) (void)ValidateList(list);
  v1::WatchRequest watch;
  if (watch.ParseFromArray(data, size)) (void)ValidateWatch(watch);
  v1::GetRequest get;
  if (get.ParseFromArray(data, size)) (void)ValidateGet(get);
  v1::CancelRequest cancel;
  if (cancel.ParseFromArray(data, size)) (void)ValidateCancel(cancel);
}

}  // namespace
}  // namespace portolan

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace portolan;
  CheckGenerate(data, static_cast<int>(size));
  CheckRankMessage(data, static_cast<int>(size));
  CheckOthers(data, static_cast<int>(size));
  return 0;
}
