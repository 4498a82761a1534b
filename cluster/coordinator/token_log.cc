#include "cluster/coordinator/token_log.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// Of one message. Text of a token is short, so this bounds its bytes too.
constexpr int64_t kMaxTokensPerMessage = 1024;

}  // namespace

void TokenLog::Append(const v1::TokenDelta& delta) {
  PORTOLAN_CHECK(delta.offset() == tokens_.size());
  for (int i = 0; i < delta.token_ids_size(); ++i) {
    tokens_.push_back(delta.token_ids(i));
    if (i < delta.texts_size()) text_ += delta.texts(i);
    text_ends_.push_back(text_.size());
  }
  logprobs_.insert(logprobs_.end(), delta.logprobs().begin(),
                   delta.logprobs().end());
}

std::string TokenLog::Text() const {
  return absl::StrCat(text_, finished() ? finish_->text_tail() : "");
}

int64_t TokenLog::Read(int64_t offset, v1::GenerateResponse& message) const {
  const int64_t end = std::clamp(size(), offset, offset + kMaxTokensPerMessage);
  message.set_offset(static_cast<uint32_t>(offset));
  if (end > offset && offset < size()) {
    message.mutable_token_ids()->Add(tokens_.begin() + offset,
                                     tokens_.begin() + end);
    const size_t text_begin =
        offset == 0 ? 0 : text_ends_[static_cast<size_t>(offset - 1)];
    const size_t text_end = text_ends_[static_cast<size_t>(end - 1)];
    message.set_text(text_.substr(text_begin, text_end - text_begin));
    for (int64_t i = offset;
         i < std::min<int64_t>(end, static_cast<int64_t>(logprobs_.size()));
         ++i) {
      *message.add_logprobs() = logprobs_[static_cast<size_t>(i)];
    }
  }
  if (finished() && end >= size()) *message.mutable_finish() = *finish_;
  return end;
}

}  // namespace portolan
