#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <functional>
#include <limits>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "cluster/coordinator/validation.h"
#include "google/protobuf/unknown_field_set.h"
#include "proto/rpc_status.pb.h"

namespace portolan {
namespace {

using ::testing::HasSubstr;
using ::testing::StartsWith;

v1::GenerateRequest GoodRequest() {
  v1::GenerateRequest request;
  request.set_text("Once upon a time");
  return request;
}

struct BadField {
  const char* field;
  absl::StatusCode code;
  std::function<void(v1::GenerateRequest&)> spoil;
};

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kUnimplemented = absl::StatusCode::kUnimplemented;
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

std::vector<BadField> BadFields() {
  const auto params = [](auto set) {
    return [set](v1::GenerateRequest& r) { set(*r.mutable_params()); };
  };
  using P = v1::SamplingParams;
  return {
      {"prompt", kInvalid, [](auto& r) { r.clear_text(); }},
      {"text", kInvalid, [](auto& r) { r.set_text(""); }},
      {"tokens", kInvalid, [](auto& r) { r.mutable_tokens(); }},
      {"tokens.ids[1]", kInvalid,
       [](auto& r) {
         r.mutable_tokens()->add_ids(3);
         r.mutable_tokens()->add_ids(-1);
       }},
      {"tokens", kInvalid,
       [](auto& r) { r.mutable_tokens()->mutable_ids()->Resize(101, 1); }},
      {"text", kInvalid, [](auto& r) { r.set_text(std::string(1001, 'x')); }},
      {"model", kInvalid, [](auto& r) { r.set_model(std::string(129, 'm')); }},
      {"idempotency_key", kInvalid,
       [](auto& r) { r.set_idempotency_key(std::string(129, 'k')); }},
      {"custom_id", kInvalid,
       [](auto& r) { r.set_custom_id(std::string(257, 'c')); }},
      {"timeout", kInvalid, [](auto& r) { r.mutable_timeout(); }},
      {"timeout", kInvalid,
       [](auto& r) { r.mutable_timeout()->set_seconds(-1); }},
      {"timeout", kInvalid,
       [](auto& r) {
         r.mutable_timeout()->set_seconds(1);
         r.mutable_timeout()->set_nanos(-1);
       }},
      {"timeout", kInvalid,
       [](auto& r) {
         r.mutable_timeout()->set_seconds(std::numeric_limits<int64_t>::max());
       }},
      {"params.n", kUnimplemented, params([](P& p) { p.set_n(2); })},
      {"params.n", kInvalid, params([](P& p) { p.set_n(0); })},
      {"params.max_tokens", kInvalid,
       params([](P& p) { p.set_max_tokens(0); })},
      {"params.max_tokens", kInvalid,
       params([](P& p) { p.set_max_tokens(0xffffffff); })},
      {"params.logprobs", kInvalid, params([](P& p) { p.set_logprobs(6); })},
      {"params.temperature", kInvalid,
       params([](P& p) { p.set_temperature(-0.1); })},
      {"params.temperature", kInvalid,
       params([](P& p) { p.set_temperature(kNan); })},
      {"params.top_p", kInvalid, params([](P& p) { p.set_top_p(0); })},
      {"params.top_p", kInvalid, params([](P& p) { p.set_top_p(1.01); })},
      {"params.min_p", kInvalid, params([](P& p) { p.set_min_p(-1); })},
      {"params.repetition_penalty", kInvalid,
       params([](P& p) { p.set_repetition_penalty(0); })},
      {"params.presence_penalty", kInvalid,
       params([](P& p) { p.set_presence_penalty(2.5); })},
      {"params.frequency_penalty", kInvalid,
       params([](P& p) { p.set_frequency_penalty(kNan); })},
      {"params.stop", kInvalid, params([](P& p) {
         for (int i = 0; i < 17; ++i) p.add_stop("x");
       })},
      {"params.stop[0]", kInvalid, params([](P& p) { p.add_stop(""); })},
      {"params.stop[1]", kInvalid, params([](P& p) {
         p.add_stop("x");
         p.add_stop(std::string(257, 'x'));
       })},
      {"params.stop_token_ids", kInvalid,
       params([](P& p) { p.mutable_stop_token_ids()->Resize(65, 1); })},
      {"params.stop_token_ids[0]", kInvalid,
       params([](P& p) { p.add_stop_token_ids(-7); })},
      {"#99", kUnimplemented,
       [](auto& r) {
         r.GetReflection()->MutableUnknownFields(&r)->AddVarint(99, 1);
       }},
      {"params.#77", kUnimplemented, params([](P& p) {
         p.GetReflection()->MutableUnknownFields(&p)->AddVarint(77, 1);
       })},
  };
}

constexpr RequestLimits kLimits = {.max_prompt_tokens = 100,
                                   .max_prompt_bytes = 1000};

TEST(ValidationTest, AGoodRequestPasses) {
  v1::GenerateRequest request = GoodRequest();
  EXPECT_TRUE(ValidateGenerate(request, kLimits).ok());

  v1::SamplingParams& params = *request.mutable_params();
  params.set_n(1);
  params.set_temperature(0);
  params.set_top_p(1);
  params.set_logprobs(5);
  params.add_stop("\n");
  request.mutable_timeout()->set_nanos(1);
  EXPECT_TRUE(ValidateGenerate(request, kLimits).ok());
}

TEST(ValidationTest, EachBadFieldIsNamedInTheMessageAndInTheDetails) {
  for (const BadField& bad : BadFields()) {
    v1::GenerateRequest request = GoodRequest();
    bad.spoil(request);

    const absl::Status status = ValidateGenerate(request, kLimits);

    SCOPED_TRACE(bad.field);
    EXPECT_EQ(status.code(), bad.code) << status;
    EXPECT_THAT(std::string(status.message()),
                StartsWith(absl::StrCat(bad.field, " ")));
    const auto payload =
        status.GetPayload("type.googleapis.com/google.rpc.BadRequest");
    ASSERT_TRUE(payload.has_value());
    google::rpc::BadRequest details;
    ASSERT_TRUE(details.ParseFromString(std::string(*payload)));
    EXPECT_EQ(details.field_violations(0).field(), bad.field);
  }
}

TEST(ValidationTest, AModelRefusesWhatItCannotHold) {
  v1::ModelIdentity model;
  model.set_vocab_size(10);
  model.set_max_context(8);
  v1::GenerateRequest request;
  for (int id = 0; id < 5; ++id) request.mutable_tokens()->add_ids(id);
  request.mutable_params()->set_max_tokens(3);
  EXPECT_TRUE(ValidateForModel(request, model).ok());

  request.mutable_params()->set_max_tokens(4);
  EXPECT_TRUE(absl::IsOutOfRange(ValidateForModel(request, model)));
  request.mutable_params()->set_max_tokens(1u << 30);
  EXPECT_TRUE(absl::IsOutOfRange(ValidateForModel(request, model)));

  request.mutable_params()->set_max_tokens(1);
  request.mutable_tokens()->set_ids(2, 10);
  const absl::Status status = ValidateForModel(request, model);
  EXPECT_TRUE(absl::IsInvalidArgument(status));
  EXPECT_THAT(std::string(status.message()), HasSubstr("tokens.ids[2] is 10"));
}

TEST(ValidationTest, ATextIsBoundByTheContextToo) {
  v1::ModelIdentity model;
  model.set_max_context(8);
  v1::GenerateRequest request;
  request.set_text("x");
  request.mutable_params()->set_max_tokens(7);
  EXPECT_TRUE(ValidateForModel(request, model).ok());

  request.mutable_params()->set_max_tokens(8);
  EXPECT_TRUE(absl::IsOutOfRange(ValidateForModel(request, model)));
}

TEST(ValidationTest, AnUnknownModelLimitsNothing) {
  v1::GenerateRequest request;
  request.mutable_tokens()->add_ids(1 << 20);
  request.mutable_params()->set_max_tokens(1u << 30);
  EXPECT_TRUE(ValidateForModel(request, v1::ModelIdentity()).ok());
}

TEST(ValidationTest, RefusesListsOfUnknownStatesAndLongPages) {
  v1::ListRequest request;
  EXPECT_TRUE(ValidateList(request).ok());
  request.set_page_size(1001);
  EXPECT_TRUE(absl::IsInvalidArgument(ValidateList(request)));
  request.set_page_size(1000);
  request.add_states(static_cast<v1::RequestState>(17));
  EXPECT_TRUE(absl::IsInvalidArgument(ValidateList(request)));
}

TEST(ValidationTest, ADeltaHasATextForEveryToken) {
  v1::TokenDelta delta;
  delta.add_token_ids(1);
  EXPECT_TRUE(absl::IsInvalidArgument(ValidateDelta(delta)));
  delta.add_texts("a");
  EXPECT_TRUE(ValidateDelta(delta).ok());
  delta.add_logprobs();
  delta.add_logprobs();
  EXPECT_TRUE(absl::IsInvalidArgument(ValidateDelta(delta)));
  delta.mutable_logprobs()->RemoveLast();
  delta.mutable_finish();
  EXPECT_TRUE(absl::IsInvalidArgument(ValidateDelta(delta)));
}

TEST(ValidationTest, RetryInfoTravelsWithTheStatus) {
  const absl::Status status = WithRetryInfo(
      absl::ResourceExhaustedError("full"), absl::Milliseconds(1500));

  EXPECT_EQ(RetryDelay(status), absl::Milliseconds(1500));
  EXPECT_EQ(RetryDelay(absl::ResourceExhaustedError("full")),
            absl::ZeroDuration());
}

}  // namespace
}  // namespace portolan
