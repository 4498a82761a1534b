#include "cluster/coordinator/telemetry.h"

#include <prometheus/text_serializer.h>

#include <nlohmann/json.hpp>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace portolan {
namespace {

using Buckets = prometheus::Histogram::BucketBoundaries;
using Json = nlohmann::ordered_json;

const Buckets& TtftBuckets() {
  static const Buckets buckets = {
      0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75,
      1,     2.5,   5,    7.5,  10,   20,   40,   80,  160,  640, 2560};
  return buckets;
}

const Buckets& LatencyBuckets() {
  static const Buckets buckets = {0.3, 0.5, 0.8, 1,   1.5, 2,    2.5,
                                  5,   10,  15,  20,  30,  40,   50,
                                  60,  120, 240, 480, 960, 1920, 7680};
  return buckets;
}

const Buckets& TokenGapBuckets() {
  static const Buckets buckets = {0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2,
                                  0.3,  0.4,   0.5,  0.75,  1,   2.5,  5,
                                  7.5,  10,    20,   40,    80};
  return buckets;
}

const Buckets& CountBuckets() {
  static const Buckets buckets = [] {
    Buckets all;
    for (double power = 1; power < 1e6; power *= 10) {
      for (const double digit : {1, 2, 5}) all.push_back(digit * power);
    }
    return all;
  }();
  return buckets;
}

constexpr absl::Duration kTellAgain = absl::Minutes(1);
constexpr size_t kMaxTold = 1000;

std::string ModelName(std::string_view name) {
  return name.empty() ? "unknown" : std::string(name);
}

std::string ModelOf(const StoredRequest& request) {
  return ModelName(request.queued.model_label());
}

std::string Dump(const Json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

Json Line(const char* event) {
  Json json;
  json["time"] =
      absl::FormatTime(absl::RFC3339_full, absl::Now(), absl::UTCTimeZone());
  json["event"] = event;
  return json;
}

std::string CodeName(const absl::Status& status) {
  return absl::StatusCodeToString(status.code());
}

std::string ReasonName(const v1::Finish& finish) {
  switch (finish.reason()) {
    case v1::FINISH_REASON_STOP:
      return "stop";
    case v1::FINISH_REASON_LENGTH:
      return "length";
    case v1::FINISH_REASON_CANCELLED:
      return "abort";
    default:
      return "error";
  }
}

double Seconds(absl::Duration duration) {
  return absl::ToDoubleSeconds(duration);
}

prometheus::Family<prometheus::Gauge>& MakeGauges(
    prometheus::Registry& registry, const char* name, const char* help) {
  return prometheus::BuildGauge().Name(name).Help(help).Register(registry);
}

}  // namespace

RankIdentity IdentityOf(const v1::Register& rank) {
  return {.job = rank.job(),
          .rank = static_cast<int>(rank.rank()),
          .incarnation = rank.incarnation(),
          .model_name = ModelName(rank.model().name()),
          .fingerprint = rank.model().fingerprint()};
}

Telemetry::Telemetry(std::unique_ptr<EventLog> log,
                     std::function<absl::Time()> now)
    : log_(std::move(log)),
      now_(std::move(now)),
      waiting_(MakeGauges(registry_, "portolan_num_requests_waiting",
                          "Requests that wait for a rank")),
      running_(MakeGauges(registry_, "portolan_num_requests_running",
                          "Requests that ranks work on")),
      ranks_(MakeGauges(registry_, "portolan_ranks_attached",
                        "Ranks whose control stream is open")
                 .Add({})),
      rank_figures_(registry_) {}

prometheus::Histogram& Telemetry::Histogram(const char* name, const char* help,
                                            std::string_view model,
                                            const Buckets& buckets) {
  return prometheus::BuildHistogram()
      .Name(name)
      .Help(help)
      .Register(registry_)
      .Add({{"model_name", std::string(model)}}, buckets);
}

prometheus::Counter& Telemetry::Counter(const char* name, const char* help,
                                        const Labels& labels) {
  return prometheus::BuildCounter()
      .Name(name)
      .Help(help)
      .Register(registry_)
      .Add(labels);
}

void Telemetry::Rejected(std::string_view client, std::string_view x_request_id,
                         std::string_view model, const absl::Status& status) {
  Counter("portolan_admission_rejections_total",
          "Requests that were refused, by status code",
          {{"code", CodeName(status)}, {"model_name", ModelName(model)}})
      .Increment();
  if (log_ == nullptr) return;
  Json json = Line("rejected");
  json["client"] = client;
  if (!x_request_id.empty()) json["x_request_id"] = x_request_id;
  json["code"] = CodeName(status);
  json["message"] = std::string(status.message());
  log_->Write(Dump(json));
}

void Telemetry::FirstToken(const StoredRequest& request, absl::Time now) {
  Histogram("portolan_time_to_first_token_seconds",
            "From acceptance to the first token", ModelOf(request),
            TtftBuckets())
      .Observe(Seconds(now - request.created));
}

void Telemetry::Tokens(const StoredRequest& request, const RankIdentity& rank,
                       int64_t count, absl::Duration gap) {
  const std::string model = ModelOf(request);
  Counter("portolan_generation_tokens_total", "Tokens generated",
          {{"model_name", model}})
      .Increment(static_cast<double>(count));
  {
    MutexLock lock(mu_);
    rank_figures_.CountTokens(rank, count, now_());
  }
  if (gap <= absl::ZeroDuration()) return;
  prometheus::Histogram& histogram =
      Histogram("portolan_inter_token_latency_seconds",
                "Between a token and the one before", model, TokenGapBuckets());
  const double each = Seconds(gap) / static_cast<double>(count);
  for (int64_t i = 0; i < count; ++i) histogram.Observe(each);
}

void Telemetry::Observe(const StoredRequest& request) {
  const std::string model = ModelOf(request);
  const v1::Usage& usage = request.finish->usage();
  Histogram("portolan_request_params_max_tokens", "max_tokens of requests",
            model, CountBuckets())
      .Observe(static_cast<double>(request.queued.max_tokens));
  const v1::SamplingParams& params = request.request.params();
  Histogram("portolan_request_params_n", "n of requests", model, CountBuckets())
      .Observe(params.has_n() ? params.n() : 1);
  Counter(
      "portolan_request_success_total", "Requests by how they ended",
      {{"model_name", model}, {"finished_reason", ReasonName(*request.finish)}})
      .Increment();
  Counter("portolan_prompt_tokens_total", "Prompt tokens of ended requests",
          {{"model_name", model}})
      .Increment(usage.prompt_tokens());
  Histogram("portolan_request_prompt_tokens", "Prompt tokens of a request",
            model, CountBuckets())
      .Observe(usage.prompt_tokens());
  Histogram("portolan_request_generation_tokens",
            "Tokens generated for a request", model, CountBuckets())
      .Observe(usage.completion_tokens());
  // n is 1: the longest of a request's sequences is its only one.
  Histogram("portolan_request_max_num_generation_tokens",
            "Tokens of the longest of a request's n sequences", model,
            CountBuckets())
      .Observe(usage.completion_tokens());
  const auto latency = [&](const char* name, const char* help,
                           absl::Duration duration) {
    Histogram(name, help, model, LatencyBuckets()).Observe(Seconds(duration));
  };
  latency("portolan_e2e_request_latency_seconds",
          "From acceptance to the end of a request",
          request.ended - request.created);
  if (request.assigned == absl::InfiniteFuture()) return;
  latency("portolan_request_queue_time_seconds",
          "From acceptance to the first assignment",
          request.assigned - request.created);
  latency("portolan_request_inference_time_seconds",
          "From the first assignment to the end",
          request.ended - request.assigned);
  if (request.first_token == absl::InfiniteFuture()) return;
  latency("portolan_request_prefill_time_seconds",
          "From the first assignment to the first token",
          request.first_token - request.assigned);
  latency("portolan_request_decode_time_seconds",
          "From the first token to the end",
          request.ended - request.first_token);
}

void Telemetry::Ended(const StoredRequest& request) {
  Observe(request);
  if (log_ == nullptr) return;
  const v1::Finish& finish = *request.finish;
  Json json = Line("request");
  json["request_id"] = request.id;
  if (!request.x_request_id.empty()) {
    json["x_request_id"] = request.x_request_id;
  }
  if (!request.request.custom_id().empty()) {
    json["custom_id"] = request.request.custom_id();
  }
  json["client"] = request.queued.client;
  json["model"] = request.queued.model;
  json["reason"] = ReasonName(finish);
  if (finish.has_error()) {
    json["code"] = absl::StatusCodeToString(
        static_cast<absl::StatusCode>(finish.error().code()));
    json["message"] = finish.error().message();
  }
  json["prompt_tokens"] = finish.usage().prompt_tokens();
  json["tokens"] = finish.usage().completion_tokens();
  json["attempt"] = request.queued.attempt;
  json["deaths"] = request.queued.deaths;
  if (request.assigned != absl::InfiniteFuture()) {
    json["queue_s"] = Seconds(request.assigned - request.created);
  }
  json["ttft_s"] = finish.ttft_s();
  json["tpot_s"] = finish.tpot_s();
  json["e2e_s"] = Seconds(request.ended - request.created);
  log_->Write(Dump(json));
}

void Telemetry::RankCounted(const RankIdentity& rank,
                            const v1::RankMetrics& metrics) {
  MutexLock lock(mu_);
  rank_figures_.Update(rank, metrics);
}

void Telemetry::RankAttached(const v1::Register& rank) {
  {
    MutexLock lock(mu_);
    rank_figures_.Attach(IdentityOf(rank), rank.capacity());
  }
  if (log_ == nullptr) return;
  Json json = Line("rank_attached");
  json["job"] = rank.job();
  json["rank"] = rank.rank();
  json["host"] = rank.host();
  json["world_size"] = rank.world_size();
  json["model"] = rank.model().name();
  json["numerics_id"] = rank.model().numerics_id();
  json["held"] = rank.running_size();
  log_->Write(Dump(json));
}

void Telemetry::RankEnded(const RankIdentity& rank, bool replaced,
                          const absl::Status& status) {
  if (!replaced) {
    MutexLock lock(mu_);
    rank_figures_.Forget(rank.job, rank.rank);
  }
  if (log_ == nullptr) return;
  Json json = Line("rank_ended");
  json["job"] = rank.job;
  json["rank"] = rank.rank;
  json["code"] = CodeName(status);
  json["message"] = std::string(status.message());
  log_->Write(Dump(json));
}

void Telemetry::Load(
    const std::map<std::string, RequestQueue::ModelLoad>& by_model,
    int64_t ranks) {
  std::map<std::string, RequestQueue::ModelLoad> by_name;
  for (const auto& [model, load] : by_model) {
    by_name[ModelName(model)].queued += load.queued;
    by_name[ModelName(model)].running += load.running;
  }
  std::erase_if(load_, [&](const auto& entry) {
    if (by_name.contains(entry.first)) return false;
    waiting_.Remove(entry.second.waiting);
    running_.Remove(entry.second.running);
    return true;
  });
  for (const auto& [name, load] : by_name) {
    const auto [gauges, is_new] = load_.try_emplace(name);
    if (is_new) {
      const Labels labels = {{"model_name", name}};
      gauges->second = {&waiting_.Add(labels), &running_.Add(labels)};
    }
    gauges->second.waiting->Set(static_cast<double>(load.queued));
    gauges->second.running->Set(static_cast<double>(load.running));
  }
  ranks_.Set(static_cast<double>(ranks));
}

void Telemetry::ExpertMaps(std::string_view fingerprint, uint32_t format,
                           int64_t rows) {
  prometheus::BuildGauge()
      .Name("portolan_expert_map_store_entries")
      .Help("Expert maps kept, by model and row format")
      .Register(registry_)
      .Add({{"fingerprint", std::string(fingerprint)},
            {"format", std::to_string(format)}})
      .Set(static_cast<double>(rows));
}

void Telemetry::Denied(std::string_view address, const absl::Status& status) {
  Counter("portolan_denied_calls_total",
          "Calls without valid credentials, by status code",
          {{"code", CodeName(status)}})
      .Increment();
  if (log_ == nullptr || !IsNews(absl::StrCat(std::string(address), " ",
                                              std::string(status.message())))) {
    return;
  }
  Json json = Line("denied");
  json["address"] = address;
  json["code"] = CodeName(status);
  json["message"] = std::string(status.message());
  log_->Write(Dump(json));
}

void Telemetry::Refused(std::string_view address, std::string_view cause,
                        std::string_view message) {
  Counter("portolan_refused_connections_total",
          "Connections and messages that were refused unread, by cause",
          {{"cause", std::string(cause)}})
      .Increment();
  if (log_ == nullptr ||
      !IsNews(absl::StrCat(std::string(address), " ", std::string(cause), " ",
                           std::string(message)))) {
    return;
  }
  Json json = Line("refused");
  if (!address.empty()) json["address"] = address;
  json["cause"] = cause;
  json["message"] = message;
  log_->Write(Dump(json));
}

bool Telemetry::IsNews(std::string what) {
  const absl::Time now = now_();
  MutexLock lock(mu_);
  std::erase_if(told_, [&](const auto& entry) {
    return entry.second + kTellAgain <= now;
  });
  return told_.size() < kMaxTold && told_.emplace(std::move(what), now).second;
}

std::string Telemetry::MetricsText() {
  {
    MutexLock lock(mu_);
    rank_figures_.Expire(now_());
  }
  return prometheus::TextSerializer().Serialize(registry_.Collect());
}

}  // namespace portolan
