#include "clients/cc/load.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <optional>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "clients/cc/completion_fields.h"
#include "clients/cc/random.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

using Json = nlohmann::json;
using OrderedJson = nlohmann::ordered_json;

absl::Status TakeField(const std::string& field, const Json& value,
                       LoadRequest& load) {
  if (field == "arrival_s") {
    if (!value.is_number() || value.get<double>() < 0) {
      return absl::InvalidArgumentError(
          "\"arrival_s\" must be a number of seconds, at least 0");
    }
    load.arrival = absl::Seconds(value.get<double>());
    return absl::OkStatus();
  }
  if (field == "prompt_tokens") {
    return TakePrompt(field, value, load.request);
  }
  const absl::Status status = TakeCompletionField(field, value, load.request);
  return absl::IsUnimplemented(status) ? absl::OkStatus() : status;
}

absl::StatusOr<LoadRequest> ParseLine(const std::string& line,
                                      bool needs_arrival) {
  const Json object = Json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) {
    return absl::InvalidArgumentError("not a JSON object");
  }
  LoadRequest load;
  for (const auto& [field, value] : object.items()) {
    if (value.is_null()) continue;
    PORTOLAN_RETURN_IF_ERROR(TakeField(field, value, load));
  }
  if (load.request.prompt_case() == v1::GenerateRequest::PROMPT_NOT_SET) {
    return absl::InvalidArgumentError("\"prompt\" is missing");
  }
  if (needs_arrival && !object.contains("arrival_s")) {
    return absl::InvalidArgumentError("\"arrival_s\" is missing");
  }
  return load;
}

OrderedJson SpreadJson(const Spread& spread) {
  return {{"mean", spread.mean}, {"p50", spread.p50}, {"p90", spread.p90},
          {"p99", spread.p99},   {"max", spread.max}, {"count", spread.count}};
}

}  // namespace

void LoadRecord::TakeTokens(int64_t count, absl::Duration now) {
  if (tokens == 0 && count > 0) ttft = now - arrival;
  tokens += count;
}

void LoadRecord::TakeEnd(absl::StatusCode status, absl::Duration now) {
  end = now - arrival;
  code = status;
}

absl::Duration LoadRecord::tpot() const {
  return tokens < 2 ? absl::ZeroDuration() : (end - ttft) / (tokens - 1);
}

std::vector<absl::Duration> PoissonArrivals(double rate, int64_t count,
                                            uint64_t seed) {
  std::vector<absl::Duration> arrivals;
  double now = 0;
  for (int64_t i = 0; i < count; ++i) {
    now += -std::log1p(-NextUnit(seed)) / rate;
    arrivals.push_back(absl::Seconds(now));
  }
  return arrivals;
}

absl::StatusOr<std::vector<LoadRequest>> ParseLoad(std::string_view jsonl,
                                                   bool needs_arrivals) {
  std::vector<LoadRequest> loads;
  std::istringstream lines{std::string(jsonl)};
  std::string line;
  for (int64_t number = 1; std::getline(lines, line); ++number) {
    if (line.find_first_not_of(" \t\r") == std::string::npos) continue;
    absl::StatusOr<LoadRequest> load = ParseLine(line, needs_arrivals);
    if (!load.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("line ", number, ": ", load.status().message()));
    }
    loads.push_back(*std::move(load));
  }
  if (loads.empty()) return absl::InvalidArgumentError("no request in it");
  std::stable_sort(loads.begin(), loads.end(),
                   [](const LoadRequest& a, const LoadRequest& b) {
                     return a.arrival < b.arrival;
                   });
  return loads;
}

Spread SpreadOf(std::vector<double> values) {
  Spread spread;
  if (values.empty()) return spread;
  std::sort(values.begin(), values.end());
  const auto at = [&values](double share) {
    const auto rank = static_cast<size_t>(
        std::ceil(share * static_cast<double>(values.size())));
    return values[std::max<size_t>(rank, 1) - 1];
  };
  double sum = 0;
  for (const double value : values) sum += value;
  spread.count = static_cast<int64_t>(values.size());
  spread.mean = sum / static_cast<double>(values.size());
  spread.p50 = at(0.5);
  spread.p90 = at(0.9);
  spread.p99 = at(0.99);
  spread.max = values.back();
  return spread;
}

LoadSummary Summarize(std::span<const LoadRecord> records) {
  LoadSummary summary;
  std::vector<double> ttft, tpot, end_to_end, late;
  absl::Duration first = absl::InfiniteDuration(), last, last_arrival;
  int64_t tokens = 0;
  for (const LoadRecord& record : records) {
    ++summary.requests;
    first = std::min(first, record.arrival);
    last = std::max(last, record.arrival + record.end);
    last_arrival = std::max(last_arrival, record.arrival);
    late.push_back(absl::ToDoubleSeconds(record.late()));
    if (record.code != absl::StatusCode::kOk) {
      ++summary.errors[absl::StatusCodeToString(record.code)];
      continue;
    }
    ++summary.done;
    tokens += record.tokens;
    end_to_end.push_back(absl::ToDoubleSeconds(record.end));
    if (record.tokens > 0) ttft.push_back(absl::ToDoubleSeconds(record.ttft));
    if (record.tokens > 1) tpot.push_back(absl::ToDoubleSeconds(record.tpot()));
  }
  if (summary.requests == 0) return summary;
  const auto per_second = [](int64_t count, absl::Duration time) {
    const double seconds = absl::ToDoubleSeconds(time);
    return seconds > 0 ? static_cast<double>(count) / seconds : 0;
  };
  summary.seconds = absl::ToDoubleSeconds(last - first);
  summary.offered_per_s =
      per_second(summary.requests - 1, last_arrival - first);
  summary.done_per_s = per_second(summary.done, last - first);
  summary.tokens_per_s = per_second(tokens, last - first);
  summary.ttft = SpreadOf(std::move(ttft));
  summary.tpot = SpreadOf(std::move(tpot));
  summary.end_to_end = SpreadOf(std::move(end_to_end));
  summary.late = SpreadOf(std::move(late));
  return summary;
}

std::string ToJson(const LoadSummary& summary) {
  const OrderedJson json = {{"requests", summary.requests},
                            {"done", summary.done},
                            {"seconds", summary.seconds},
                            {"offered_per_s", summary.offered_per_s},
                            {"done_per_s", summary.done_per_s},
                            {"tokens_per_s", summary.tokens_per_s},
                            {"errors", summary.errors},
                            {"ttft_s", SpreadJson(summary.ttft)},
                            {"tpot_s", SpreadJson(summary.tpot)},
                            {"end_to_end_s", SpreadJson(summary.end_to_end)},
                            {"sent_late_s", SpreadJson(summary.late)}};
  return json.dump(2);
}

std::string ToJson(const LoadRecord& record) {
  const OrderedJson json = {
      {"arrival_s", absl::ToDoubleSeconds(record.arrival)},
      {"sent_s", absl::ToDoubleSeconds(record.sent)},
      {"ttft_s", absl::ToDoubleSeconds(record.ttft)},
      {"end_s", absl::ToDoubleSeconds(record.end)},
      {"prompt_tokens", record.prompt_tokens},
      {"tokens", record.tokens},
      {"code", absl::StatusCodeToString(record.code)}};
  return json.dump();
}

}  // namespace portolan
