#include "runtime/model/tokenizer/tokenizer.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/decode_stages.h"
#include "runtime/model/tokenizer/json_tokenizer.h"
#include "runtime/model/tokenizer/sentencepiece_tokenizer.h"

namespace portolan {
namespace {

// The largest known tokenizer.json has 33 MB.
constexpr uint64_t kMaxFileBytes = uint64_t{256} << 20;

absl::StatusOr<std::string> ReadFile(const std::string& path) {
  std::error_code error;
  const uint64_t num_bytes = std::filesystem::file_size(path, error);
  if (error) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be read: ", error.message()));
  }
  if (num_bytes > kMaxFileBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": ", num_bytes, " bytes; a tokenizer has at most ",
                     kMaxFileBytes));
  }
  std::ifstream file(path, std::ios::binary);
  std::string contents(num_bytes, '\0');
  if (!file.read(contents.data(), static_cast<std::streamsize>(num_bytes))) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, ": cannot be read: ", std::strerror(errno)));
  }
  return contents;
}

}  // namespace

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(
    const std::string& dir) {
  const std::string json = absl::StrCat(dir, "/tokenizer.json");
  const std::string model = absl::StrCat(dir, "/tokenizer.model");
  std::error_code error;
  if (std::filesystem::exists(json, error)) {
    PORTOLAN_ASSIGN_OR_RETURN(const std::string text, ReadFile(json));
    return FromJson(text, json);
  }
  if (std::filesystem::exists(model, error)) {
    PORTOLAN_ASSIGN_OR_RETURN(const std::string contents, ReadFile(model));
    return MakeSentencePieceTokenizer(contents, model);
  }
  return absl::NotFoundError(
      absl::StrCat(dir, ": neither tokenizer.json nor tokenizer.model there"));
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::FromJson(
    std::string_view text, const std::string& file) {
  return MakeJsonTokenizer(text, file);
}

std::string Tokenizer::Decode(std::span<const int32_t> ids,
                              bool skip_special) const {
  StreamDecoder stream(*this, skip_special);
  std::string text;
  for (const int32_t id : ids) text += stream.Push(id);
  text += stream.Finish();
  return text;
}

// Behind the last stage: collects the text of one Push().
class StreamDecoder::Sink : public DecodeStage {
 public:
  void Text(std::string_view chunk) override { text += chunk; }
  void EndToken() override {}
  void Finish() override {}

  std::string text;
};

StreamDecoder::StreamDecoder(const Tokenizer& tokenizer, bool skip_special)
    : tokenizer_(&tokenizer),
      skip_special_(skip_special),
      sink_(std::make_unique<Sink>()),
      stages_(tokenizer.NewStages()) {
  PORTOLAN_CHECK(!stages_.empty());
  for (size_t i = 0; i + 1 < stages_.size(); ++i) {
    stages_[i]->set_next(*stages_[i + 1]);
  }
  stages_.back()->set_next(*sink_);
}

StreamDecoder::~StreamDecoder() = default;
StreamDecoder::StreamDecoder(StreamDecoder&&) noexcept = default;
StreamDecoder& StreamDecoder::operator=(StreamDecoder&&) noexcept = default;

std::string_view StreamDecoder::Push(int32_t id) {
  sink_->text.clear();
  std::string_view token;
  if (skip_special_ && tokenizer_->IsSpecial(id)) return {};
  if (!tokenizer_->SpellToken(id, token)) return {};
  stages_.front()->Text(token);
  stages_.front()->EndToken();
  return sink_->text;
}

std::string_view StreamDecoder::Finish() {
  sink_->text.clear();
  stages_.front()->Finish();
  return sink_->text;
}

}  // namespace portolan
