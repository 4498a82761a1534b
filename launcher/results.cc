#include "launcher/results.h"

#include <cstring>
#include <nlohmann/json.hpp>
#include <utility>

namespace portolan {
namespace {

struct ResultHeader {
  int64_t index;
  uint64_t bytes;
};

// [[[id, log-probability], ...], ...]: the chosen token first.
nlohmann::ordered_json Logprobs(const GenerationResult& result) {
  nlohmann::ordered_json tokens = nlohmann::ordered_json::array();
  for (const std::vector<TokenLogprob>& token : result.logprobs) {
    nlohmann::ordered_json entries = nlohmann::ordered_json::array();
    for (const TokenLogprob& entry : token) {
      entries.push_back({entry.token, entry.logprob});
    }
    tokens.push_back(std::move(entries));
  }
  return tokens;
}

}  // namespace

std::string ToJson(const GenerationResult& result) {
  nlohmann::ordered_json json;
  json["id"] = result.id;
  json["prompt_tokens"] = result.prompt_tokens;
  json["tokens"] = result.tokens;
  json["text"] = result.text;
  if (!result.logprobs.empty()) json["logprobs"] = Logprobs(result);
  json["finish_reason"] = FinishReasonName(result.finish_reason);
  json["ttft_s"] = result.ttft_s;
  json["tpot_s"] = result.tpot_s;
  // A sequence that was cut may end inside a character.
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string EncodeResult(int64_t index, std::string_view text) {
  const ResultHeader header{index, text.size()};
  std::string encoded(sizeof(header), '\0');
  std::memcpy(encoded.data(), &header, sizeof(header));
  encoded += text;
  return encoded;
}

InOrderPrinter::InOrderPrinter(std::function<void(const std::string&)> print)
    : print_(std::move(print)) {}

void InOrderPrinter::Add(int64_t index, std::string text) {
  waiting_.emplace(index, std::move(text));
  for (auto it = waiting_.find(next_); it != waiting_.end();
       it = waiting_.find(next_)) {
    print_(it->second);
    waiting_.erase(it);
    ++next_;
  }
}

void InOrderPrinter::AddEncoded(std::string_view encoded) {
  while (encoded.size() >= sizeof(ResultHeader)) {
    ResultHeader header;
    std::memcpy(&header, encoded.data(), sizeof(header));
    encoded.remove_prefix(sizeof(header));
    Add(header.index, std::string(encoded.substr(0, header.bytes)));
    encoded.remove_prefix(header.bytes);
  }
}

}  // namespace portolan
