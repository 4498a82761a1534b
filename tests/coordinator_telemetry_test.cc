#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "cluster/coordinator/telemetry.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;
using ::testing::SizeIs;

StoredRequest DoneRequest() {
  const absl::Time start = absl::FromUnixSeconds(1000);
  StoredRequest request;
  request.id = "r1-00";
  request.queued.client = "ann";
  request.queued.model = "tiny";
  request.queued.attempt = 1;
  request.created = start;
  request.assigned = start + absl::Seconds(1);
  request.first_token = start + absl::Seconds(3);
  request.ended = start + absl::Seconds(7);
  request.x_request_id = "mine";
  v1::Finish& finish = request.finish.emplace();
  finish.set_reason(v1::FINISH_REASON_LENGTH);
  finish.mutable_usage()->set_prompt_tokens(5);
  finish.mutable_usage()->set_completion_tokens(9);
  return request;
}

TEST(TelemetryTest, CarriesTheStemsAndBucketsOfVllm) {
  Telemetry telemetry(nullptr);
  const StoredRequest request = DoneRequest();
  telemetry.FirstToken(request, request.first_token);
  telemetry.Tokens(request, {.job = "job", .rank = 3, .model_name = "tiny"}, 9,
                   absl::Milliseconds(90));
  telemetry.Ended(request);
  telemetry.Load({{"tiny", {.queued = 4, .running = 2}}, {"", {.queued = 1}}},
                 1);
  telemetry.Rejected("ann", "", "tiny", absl::ResourceExhaustedError("full"));

  const std::string text = telemetry.MetricsText();

  for (const char* line : {
           "portolan_num_requests_waiting{model_name=\"tiny\"} 4",
           "portolan_num_requests_waiting{model_name=\"unknown\"} 1",
           "portolan_num_requests_running{model_name=\"tiny\"} 2",
           "portolan_generation_tokens_total{model_name=\"tiny\"} 9",
           "portolan_prompt_tokens_total{model_name=\"tiny\"} 5",
           "portolan_rank_tokens_total{job=\"job\",model_name=\"tiny\",rank="
           "\"3\"} 9",
           "portolan_request_max_num_generation_tokens_sum{model_name="
           "\"tiny\"} 9",
           "portolan_request_success_total{finished_reason=\"length\","
           "model_name=\"tiny\"} 1",
           "portolan_admission_rejections_total{code=\"RESOURCE_EXHAUSTED\","
           "model_name=\"tiny\"} 1",
           "portolan_time_to_first_token_seconds_bucket{model_name=\"tiny\","
           "le=\"2.5\"} 0",
           "portolan_time_to_first_token_seconds_bucket{model_name=\"tiny\","
           "le=\"5\"} 1",
           "portolan_time_to_first_token_seconds_bucket{model_name=\"tiny\","
           "le=\"2560\"} 1",
           "portolan_e2e_request_latency_seconds_sum{model_name=\"tiny\"} 7",
           "portolan_request_queue_time_seconds_sum{model_name=\"tiny\"} 1",
           "portolan_request_prefill_time_seconds_sum{model_name=\"tiny\"} 2",
           "portolan_request_decode_time_seconds_sum{model_name=\"tiny\"} 4",
           "portolan_inter_token_latency_seconds_count{model_name=\"tiny\"} 9",
       }) {
    EXPECT_THAT(text, HasSubstr(line));
  }
}

TEST(TelemetryTest, SeriesEndWithTheModelsAndRanksThatTheyAreOf) {
  absl::Time now = absl::UnixEpoch();
  Telemetry telemetry(nullptr, [&now] { return now; });
  const RankIdentity rank = {.job = "job", .rank = 3, .model_name = "tiny"};
  telemetry.Load({{"tiny", {}}, {"", {.queued = 1}}}, 1);
  telemetry.Tokens(DoneRequest(), rank, 9, absl::ZeroDuration());
  EXPECT_THAT(telemetry.MetricsText(), HasSubstr("\"unknown\""));
  EXPECT_THAT(telemetry.MetricsText(), HasSubstr("rank_tokens_total{"));

  telemetry.Load({{"tiny", {}}}, 1);
  now += RankFigures::kLinger;

  const std::string text = telemetry.MetricsText();
  EXPECT_THAT(text, HasSubstr("requests_waiting{model_name=\"tiny\"} 0"));
  EXPECT_THAT(text, Not(HasSubstr("\"unknown\"")));
  EXPECT_THAT(text, Not(HasSubstr("rank_tokens_total{")));
}

TEST(TelemetryTest, WritesOneJsonObjectALine) {
  const std::filesystem::path path =
      std::filesystem::path(::testing::TempDir()) / "telemetry_test.jsonl";
  std::filesystem::remove(path);
  {
    Telemetry telemetry(*EventLog::Open(path.string()));
    StoredRequest request = DoneRequest();
    request.request.set_custom_id("a \"quoted\" id\n");
    telemetry.Ended(request);
    telemetry.Denied("1.2.3.4", absl::UnauthenticatedError("no"));
    telemetry.Denied("1.2.3.4", absl::UnauthenticatedError("no"));
    for (int i = 0; i < 2; ++i) {
      telemetry.Refused("1.2.3.4", "nonsense", "what came");
      telemetry.Refused("1.2.3.5", "nonsense", "what came");
      telemetry.Refused("", "certificate", "expired");
    }
  }

  std::ifstream file(path);
  std::vector<nlohmann::json> lines;
  for (std::string line; std::getline(file, line);) {
    lines.push_back(nlohmann::json::parse(line));
  }
  ASSERT_THAT(lines, SizeIs(5)) << "what is told is not told again";
  EXPECT_EQ(lines[0]["event"], "request");
  EXPECT_EQ(lines[0]["request_id"], "r1-00");
  EXPECT_EQ(lines[0]["x_request_id"], "mine");
  EXPECT_EQ(lines[0]["custom_id"], "a \"quoted\" id\n");
  EXPECT_EQ(lines[0]["queue_s"], 1.0);
  EXPECT_EQ(lines[0]["e2e_s"], 7.0);
  EXPECT_EQ(lines[1]["event"], "denied");
  EXPECT_EQ(lines[2]["event"], "refused");
  EXPECT_EQ(lines[2]["address"], "1.2.3.4");
  EXPECT_EQ(lines[3]["address"], "1.2.3.5");
  EXPECT_EQ(lines[4]["cause"], "certificate");
  EXPECT_FALSE(lines[4].contains("address"));
}

}  // namespace
}  // namespace portolan
