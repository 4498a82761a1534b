#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "runtime/serving/request.h"

namespace portolan {

// What `generate` has to say about one prompt.
struct GenerationResult {
  int64_t index = 0;  // of the prompt in the input
  std::string id;
  int64_t prompt_tokens = 0;
  std::vector<int32_t> tokens;  // generated
  std::string text;
  // One per token if asked for: that of the chosen token first.
  std::vector<std::vector<TokenLogprob>> logprobs;
  FinishReason finish_reason = FinishReason::kLength;
  double ttft_s = 0;  // from the first step's start to the first token
  double tpot_s = 0;  // per further token; 0 where there is none
};

// One JSON object, without a line break.
std::string ToJson(const GenerationResult& result);

// How ranks hand results to rank 0: the index and the JSON, in one text.
std::string EncodeResult(int64_t index, std::string_view text);

// Prints texts by rising index, each as soon as all before it have come.
class InOrderPrinter {
 public:
  explicit InOrderPrinter(std::function<void(const std::string&)> print);

  void Add(int64_t index, std::string text);

  // As Add() for every result in an encoded sequence of them.
  void AddEncoded(std::string_view encoded);

  // So many from the first one on; of later ones, none.
  int64_t printed() const { return next_; }

 private:
  std::function<void(const std::string&)> print_;
  std::map<int64_t, std::string> waiting_;
  int64_t next_ = 0;
};

}  // namespace portolan
