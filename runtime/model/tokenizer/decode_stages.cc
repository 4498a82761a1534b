#include "runtime/model/tokenizer/decode_stages.h"

#include <algorithm>
#include <optional>

#include "runtime/model/tokenizer/byte_alphabet.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

class ByteLevelStage : public DecodeStage {
 public:
  void Text(std::string_view chunk) override { token_ += chunk; }

  void EndToken() override {
    text_.clear();
    if (!ReadAlphabet()) bytes_ = token_;
    for (const char byte : bytes_) {
      repair_.Push(static_cast<uint8_t>(byte), text_);
    }
    token_.clear();
    if (!text_.empty()) next().Text(text_);
  }

  void Finish() override {
    text_.clear();
    repair_.Finish(text_);
    if (!text_.empty()) next().Text(text_);
    next().EndToken();
    next().Finish();
  }

 private:
  bool ReadAlphabet() {
    bytes_.clear();
    for (size_t at = 0; at < token_.size();) {
      const Utf8Char c = CharAt(token_, at);
      const std::optional<uint8_t> byte = ByteOfAlphabet(c.code);
      if (!byte.has_value()) return false;
      bytes_ += static_cast<char>(*byte);
      at += c.num_bytes;
    }
    return true;
  }

  std::string token_;
  std::string bytes_;
  std::string text_;
  Utf8Repair repair_;
};

class MetaspaceStage : public DecodeStage {
 public:
  MetaspaceStage(char32_t replacement, bool drops_first)
      : replacement_(replacement), dropping_(drops_first) {}

  void Text(std::string_view chunk) override {
    text_.clear();
    for (size_t at = 0; at < chunk.size();) {
      const Utf8Char c = CharAt(chunk, at);
      if (c.code != replacement_) {
        text_ += chunk.substr(at, c.num_bytes);
      } else if (!dropping_) {
        text_ += ' ';
      }
      at += c.num_bytes;
    }
    next().Text(text_);
  }

  void EndToken() override {
    dropping_ = false;
    next().EndToken();
  }

  void Finish() override { next().Finish(); }

 private:
  char32_t replacement_;
  bool dropping_;
  std::string text_;
};

// Replaces a string within each token as the text comes in.
class ReplaceStringStage : public DecodeStage {
 public:
  ReplaceStringStage(const std::string& from, const std::string& to)
      : from_(from), to_(to) {}

  void Text(std::string_view chunk) override {
    kept_ += chunk;
    text_.clear();
    size_t done = 0;
    for (size_t at = kept_.find(from_); at != std::string::npos;
         at = kept_.find(from_, done)) {
      text_.append(kept_, done, at - done);
      text_ += to_;
      done = at + from_.size();
    }
    const size_t certain = kept_.size() - LengthOfPossibleStart(done);
    text_.append(kept_, done, certain - done);
    kept_.erase(0, certain);
    if (!text_.empty()) next().Text(text_);
  }

  void EndToken() override {
    if (!kept_.empty()) next().Text(kept_);
    kept_.clear();
    next().EndToken();
  }

  void Finish() override { next().Finish(); }

 private:
  // How many bytes at the end of kept_, behind `done`, may begin a match.
  size_t LengthOfPossibleStart(size_t done) const {
    const std::string_view rest = std::string_view(kept_).substr(done);
    for (size_t length = std::min(rest.size(), from_.size() - 1); length > 0;
         --length) {
      if (from_.starts_with(rest.substr(rest.size() - length))) return length;
    }
    return 0;
  }

  const std::string& from_;
  const std::string& to_;
  std::string kept_;
  std::string text_;
};

// Replaces the matches of a regular expression in each token.
class ReplaceRegexStage : public DecodeStage {
 public:
  ReplaceRegexStage(const TextPattern& from, const std::string& to)
      : from_(from), to_(to) {}

  void Text(std::string_view chunk) override { token_ += chunk; }

  void EndToken() override {
    const absl::StatusOr<std::string> replaced = from_.Replace(token_, to_);
    next().Text(replaced.ok() ? *replaced : token_);
    token_.clear();
    next().EndToken();
  }

  void Finish() override { next().Finish(); }

 private:
  const TextPattern& from_;
  const std::string& to_;
  std::string token_;
};

class ByteFallbackStage : public DecodeStage {
 public:
  void Text(std::string_view chunk) override {
    if (IsPlain()) {
      next().Text(chunk);
      return;
    }
    token_ += chunk;
    if (MayBeByte()) return;
    EndRun();
    next().Text(token_);
  }

  void EndToken() override {
    if (const std::optional<uint8_t> byte = ByteOfToken()) {
      run_ += static_cast<char>(*byte);
    } else {
      if (!IsPlain()) {
        EndRun();
        next().Text(token_);
      }
      next().EndToken();
    }
    token_.clear();
  }

  void Finish() override {
    EndRun();
    next().Finish();
  }

 private:
  static constexpr std::string_view kStart = "<0x";
  static constexpr size_t kTokenBytes = 6;

  // Whether the token so far has the form of a byte.
  bool MayBeByte() const {
    if (token_.size() > kTokenBytes) return false;
    const size_t length = std::min(token_.size(), kStart.size());
    return std::string_view(token_).substr(0, length) ==
           kStart.substr(0, length);
  }

  // Whether the token so far was passed on because it is no byte.
  bool IsPlain() const { return !MayBeByte(); }

  std::optional<uint8_t> ByteOfToken() const {
    if (token_.size() != kTokenBytes || !MayBeByte() || token_[5] != '>') {
      return std::nullopt;
    }
    int value = 0;
    for (const char c : std::string_view(token_).substr(3, 2)) {
      const int digit = c >= '0' && c <= '9'   ? c - '0'
                        : c >= 'A' && c <= 'F' ? c - 'A' + 10
                        : c >= 'a' && c <= 'f' ? c - 'a' + 10
                                               : -1;
      if (digit < 0) return std::nullopt;
      value = value * 16 + digit;
    }
    return static_cast<uint8_t>(value);
  }

  void EndRun() {
    if (run_.empty()) return;
    if (!FindInvalidUtf8(run_).has_value()) {
      next().Text(run_);
      next().EndToken();
    } else {
      for (size_t i = 0; i < run_.size(); ++i) {
        next().Text("\uFFFD");
        next().EndToken();
      }
    }
    run_.clear();
  }

  std::string token_;
  std::string run_;
};

class FuseStage : public DecodeStage {
 public:
  void Text(std::string_view chunk) override { next().Text(chunk); }
  void EndToken() override {}
  void Finish() override {
    next().EndToken();
    next().Finish();
  }
};

class StripStage : public DecodeStage {
 public:
  StripStage(char32_t content, int64_t start, int64_t stop)
      : start_(start), stop_(stop), to_skip_(start) {
    AppendUtf8(content, content_);
  }

  void Text(std::string_view chunk) override {
    while (to_skip_ > 0 && chunk.starts_with(content_)) {
      chunk.remove_prefix(content_.size());
      --to_skip_;
    }
    if (chunk.empty()) return;
    to_skip_ = 0;
    if (stop_ == 0) {
      next().Text(chunk);
      return;
    }
    KeepEnd(chunk);
  }

  void EndToken() override {
    num_kept_ = 0;
    to_skip_ = start_;
    next().EndToken();
  }

  void Finish() override { next().Finish(); }

 private:
  // Passes on all but the last characters that are still to be stripped if the
  // token ends here.
  void KeepEnd(std::string_view chunk) {
    size_t end = chunk.size();
    int64_t num_at_end = 0;
    while (num_at_end < stop_ && chunk.substr(0, end).ends_with(content_)) {
      end -= content_.size();
      ++num_at_end;
    }
    // What was kept is stripped only as part of one run with the new end.
    int64_t kept_before = num_kept_;
    if (end == 0)
      kept_before = std::max<int64_t>(0, num_kept_ + num_at_end - stop_);
    text_.clear();
    for (int64_t i = 0; i < kept_before; ++i) text_ += content_;
    text_ += chunk.substr(0, end);
    num_kept_ = num_kept_ - kept_before + num_at_end;
    if (!text_.empty()) next().Text(text_);
  }

  int64_t start_;
  int64_t stop_;
  std::string content_;
  int64_t to_skip_;       // of start_, in this token
  int64_t num_kept_ = 0;  // characters content_ that are kept back
  std::string text_;
};

class PassingStage : public DecodeStage {
 public:
  void Text(std::string_view chunk) override { next().Text(chunk); }
  void EndToken() override { next().EndToken(); }
  void Finish() override { next().Finish(); }
};

class SpaceJoiningStage : public DecodeStage {
 public:
  void Text(std::string_view chunk) override {
    if (space_due_) next().Text(" ");
    space_due_ = false;
    next().Text(chunk);
  }
  void EndToken() override {
    if (space_due_) next().Text(" ");  // between empty tokens too
    space_due_ = true;
    next().EndToken();
  }
  void Finish() override { next().Finish(); }

 private:
  bool space_due_ = false;
};

}  // namespace

std::unique_ptr<DecodeStage> MakeByteLevelStage() {
  return std::make_unique<ByteLevelStage>();
}

std::unique_ptr<DecodeStage> MakeMetaspaceStage(char32_t replacement,
                                                bool drops_first) {
  return std::make_unique<MetaspaceStage>(replacement, drops_first);
}

std::unique_ptr<DecodeStage> MakeReplaceStage(const TextPattern& from,
                                              const std::string& to) {
  if (from.literal().empty()) {
    return std::make_unique<ReplaceRegexStage>(from, to);
  }
  return std::make_unique<ReplaceStringStage>(from.literal(), to);
}

std::unique_ptr<DecodeStage> MakeByteFallbackStage() {
  return std::make_unique<ByteFallbackStage>();
}

std::unique_ptr<DecodeStage> MakeFuseStage() {
  return std::make_unique<FuseStage>();
}

std::unique_ptr<DecodeStage> MakeStripStage(char32_t content, int64_t start,
                                            int64_t stop) {
  return std::make_unique<StripStage>(content, start, stop);
}

std::unique_ptr<DecodeStage> MakeSpaceJoiningStage() {
  return std::make_unique<SpaceJoiningStage>();
}

std::unique_ptr<DecodeStage> MakePassingStage() {
  return std::make_unique<PassingStage>();
}

}  // namespace portolan
