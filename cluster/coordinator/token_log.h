#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "proto/control.pb.h"
#include "proto/inference.pb.h"

namespace portolan {

// What a request has put out so far, from offset 0 on: tokens, the text that
// each released, log-probabilities if asked for, and the end. Readers take it
// from any offset, in pieces of bounded size, so that a slow reader costs its
// position only.
//
// Thread-compatible.
class TokenLog {
 public:
  // delta.offset() == size().
  void Append(const v1::TokenDelta& delta);
  void Finish(const v1::Finish& finish) { finish_ = finish; }

  int64_t size() const { return static_cast<int64_t>(tokens_.size()); }
  const std::vector<int32_t>& tokens() const { return tokens_; }
  // With the tail of the end, if it has come.
  std::string Text() const;
  const std::optional<v1::Finish>& finish() const { return finish_; }
  bool finished() const { return finish_.has_value(); }

  // True if a reader at `offset` has something to get.
  bool HasNews(int64_t offset) const { return offset < size() || finished(); }

  // Puts what follows `offset` into `message`: tokens, texts,
  // log-probabilities, and the end if nothing is left before it. Returns the
  // reader's new offset.
  int64_t Read(int64_t offset, v1::GenerateResponse& message) const;

 private:
  std::vector<int32_t> tokens_;
  std::string text_;
  std::vector<size_t> text_ends_;  // of the text up to and with token i
  std::vector<v1::TokenLogprobs> logprobs_;  // none, or one per token
  std::optional<v1::Finish> finish_;
};

}  // namespace portolan
