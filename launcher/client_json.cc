#include "launcher/client_json.h"

#include <nlohmann/json.hpp>

#include "clients/cc/transcript.h"

namespace portolan {
namespace {

using Json = nlohmann::ordered_json;

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

double Seconds(const google::protobuf::Timestamp& time) {
  return static_cast<double>(time.seconds()) +
         static_cast<double>(time.nanos()) * 1e-9;
}

Json FinishJson(const v1::Finish& finish) {
  Json json = {{"reason", FinishReasonText(finish.reason())},
               {"prompt_tokens", finish.usage().prompt_tokens()},
               {"completion_tokens", finish.usage().completion_tokens()},
               {"cached_prompt_tokens", finish.usage().cached_prompt_tokens()},
               {"ttft_s", finish.ttft_s()},
               {"tpot_s", finish.tpot_s()}};
  if (finish.has_error()) {
    json["error"] = {{"code", finish.error().code()},
                     {"message", finish.error().message()}};
  }
  return json;
}

Json RankJson(const v1::RankStats& rank) {
  return {{"job", rank.job()},
          {"rank", rank.rank()},
          {"host", rank.host()},
          {"model", rank.model()},
          {"running", rank.running()},
          {"free_sequences", rank.free_sequences()},
          {"free_kv_tokens", rank.free_kv_tokens()},
          {"tokens", rank.tokens()},
          {"draining", rank.draining()},
          {"silent_s", rank.silent_s()},
          {"steps", rank.steps()},
          {"expert_hits", rank.expert_hits()},
          {"expert_late", rank.expert_late()},
          {"expert_misses", rank.expert_misses()},
          {"expert_stall_s", rank.expert_stall_s()},
          {"expert_memory_bytes", rank.expert_memory_bytes()}};
}

}  // namespace

std::string StateText(v1::RequestState state) {
  switch (state) {
    case v1::REQUEST_STATE_QUEUED:
      return "queued";
    case v1::REQUEST_STATE_RUNNING:
      return "running";
    case v1::REQUEST_STATE_DONE:
      return "done";
    case v1::REQUEST_STATE_FAILED:
      return "failed";
    case v1::REQUEST_STATE_CANCELLED:
      return "cancelled";
    default:
      return "unknown";
  }
}

std::string ToJson(const v1::RequestInfo& info) {
  Json json = {{"request_id", info.request_id()},
               {"custom_id", info.custom_id()},
               {"model", info.model()},
               {"state", StateText(info.state())},
               {"created", Seconds(info.created())}};
  if (info.has_ended()) json["ended"] = Seconds(info.ended());
  json["attempt"] = info.attempt();
  json["num_tokens"] = info.num_tokens();
  json["seed"] = info.seed();
  json["queue_position"] = info.queue_position();
  json["tokens"] = info.token_ids();
  json["text"] = info.text();
  if (info.has_finish()) json["finish"] = FinishJson(info.finish());
  return Dump(json);
}

std::string ToJson(const v1::SubmitResponse& response) {
  return Dump({{"request_id", response.request_id()},
               {"existed", response.existed()},
               {"seed", response.seed()}});
}

std::string ToJson(const v1::Stats& stats) {
  Json json = {
      {"version", stats.version()},   {"uptime_s", stats.uptime_s()},
      {"draining", stats.draining()}, {"queued", stats.queued()},
      {"running", stats.running()},   {"accepted", stats.accepted()},
      {"rejected", stats.rejected()}, {"done", stats.done()},
      {"failed", stats.failed()},     {"cancelled", stats.cancelled()},
      {"tokens", stats.tokens()},     {"tokens_per_s", stats.tokens_per_s()},
      {"ranks", Json::array()},       {"models", Json::array()}};
  for (const v1::RankStats& rank : stats.ranks()) {
    json["ranks"].push_back(RankJson(rank));
  }
  for (const v1::ModelStats& model : stats.models()) {
    json["models"].push_back({{"name", model.name()},
                              {"fingerprint", model.fingerprint()},
                              {"expert_maps", model.expert_maps()},
                              {"expert_map_bytes", model.expert_map_bytes()},
                              {"expert_map_hits", model.expert_map_hits()}});
  }
  return Dump(json);
}

}  // namespace portolan
