#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "absl/status/status.h"
#include "proto/inference.pb.h"

namespace portolan {

// "stop", "length", "cancelled", "error"; "unfinished" if there is no reason.
std::string_view FinishReasonText(v1::FinishReason reason);

// Policy: what a stream of responses adds up to, over any number of calls. It
// accepts every token once and in order, whatever the server does.
//
// Thread-compatible.
class Transcript {
 public:
  // Tokens before `from` are known to the caller and never come.
  explicit Transcript(uint32_t from = 0) : from_(from) {}

  // Takes the next message.
  // Errors: kDataLoss if it repeats or leaves out tokens, belongs to another
  // request or follows the end; the transcript is as before then.
  absl::Status Add(const v1::GenerateResponse& response);

  bool finished() const { return finished_; }
  // Offset of the next token.
  uint32_t next_offset() const {
    return from_ + static_cast<uint32_t>(tokens_.size());
  }
  // Empty before the first message.
  const std::string& request_id() const { return request_id_; }
  const std::string& custom_id() const { return custom_id_; }
  uint64_t seed() const { return seed_; }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  const std::string& text() const { return text_; }
  const std::vector<v1::TokenLogprobs>& logprobs() const { return logprobs_; }
  const v1::Finish& finish() const { return finish_; }

  // OK if the request ended by itself; else why not.
  absl::Status Outcome() const;

 private:
  const uint32_t from_;
  bool finished_ = false;
  std::string request_id_;
  std::string custom_id_;
  uint64_t seed_ = 0;
  std::vector<int32_t> tokens_;
  std::string text_;
  std::vector<v1::TokenLogprobs> logprobs_;
  v1::Finish finish_;
};

// One JSON object, without a line break: the same fields as `portolan generate
// --format jsonl` gives, and the request's id and seed.
std::string ToJson(const Transcript& transcript);

}  // namespace portolan
