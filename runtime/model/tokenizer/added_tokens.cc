#include "runtime/model/tokenizer/added_tokens.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

// Bounds the work per byte of text that a hostile file can cause.
constexpr size_t kMaxTokenBytes = 4096;

// Where the character that ends at `end` begins.
size_t PreviousChar(std::string_view text, size_t end) {
  size_t at = end - 1;
  while (at > 0 && (static_cast<uint8_t>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

bool IsSingleWord(std::string_view text, size_t begin, size_t end) {
  const bool word_before =
      begin > 0 &&
      IsWordCharacter(CharAt(text, PreviousChar(text, begin)).code);
  const bool word_behind =
      end < text.size() && IsWordCharacter(CharAt(text, end).code);
  return !word_before && !word_behind;
}

size_t SkipSpaceLeft(std::string_view text, size_t begin, size_t limit) {
  while (begin > limit) {
    const size_t previous = PreviousChar(text, begin);
    if (!IsWhiteSpace(CharAt(text, previous).code)) break;
    begin = previous;
  }
  return begin;
}

size_t SkipSpaceRight(std::string_view text, size_t end) {
  while (end < text.size()) {
    const Utf8Char c = CharAt(text, end);
    if (!IsWhiteSpace(c.code)) break;
    end += c.num_bytes;
  }
  return end;
}

}  // namespace

void StringTrie::Add(std::string_view text, size_t index) {
  uint32_t node = 0;
  for (const char c : text) {
    const auto byte = static_cast<uint8_t>(c);
    uint32_t& child =
        node == 0 ? root_[byte] : children_[uint64_t{node} << 8 | byte];
    if (child == 0) {
      child = static_cast<uint32_t>(index_of_node_.size());
      index_of_node_.push_back(-1);
    }
    node = child;
  }
  if (index_of_node_[node] < 0) {
    index_of_node_[node] = static_cast<int64_t>(index);
  }
}

uint32_t StringTrie::Child(uint32_t node, uint8_t byte) const {
  if (node == 0) return root_[byte];
  const auto child = children_.find(uint64_t{node} << 8 | byte);
  return child == children_.end() ? 0 : child->second;
}

std::optional<StringTrie::Match> StringTrie::Longest(std::string_view text,
                                                     size_t at) const {
  std::optional<Match> longest;
  uint32_t node = 0;
  for (size_t i = at; i < text.size(); ++i) {
    node = Child(node, static_cast<uint8_t>(text[i]));
    if (node == 0) break;
    if (index_of_node_[node] >= 0) {
      longest = Match{static_cast<size_t>(index_of_node_[node]), i + 1 - at};
    }
  }
  return longest;
}

absl::StatusOr<AddedTokens> AddedTokens::FromJson(
    const JsonField& field, const Vocabulary& model,
    const Normalizer* normalizer) {
  AddedTokens added;
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> elements,
                            field.Elements());
  for (const JsonField& element : elements) {
    PORTOLAN_RETURN_IF_ERROR(added.Add(element, model));
  }
  PORTOLAN_RETURN_IF_ERROR(added.BuildTries(normalizer));
  return added;
}

absl::StatusOr<AddedTokens::Token> AddedTokens::ReadToken(
    const JsonField& field) {
  Token token;
  PORTOLAN_ASSIGN_OR_RETURN(token.content, field.GetString("content"));
  PORTOLAN_ASSIGN_OR_RETURN(const int64_t id, field.GetInt("id", kMaxTokenIds));
  token.id = static_cast<int32_t>(id);
  PORTOLAN_ASSIGN_OR_RETURN(token.single_word,
                            field.GetBool("single_word", false));
  PORTOLAN_ASSIGN_OR_RETURN(token.lstrip, field.GetBool("lstrip", false));
  PORTOLAN_ASSIGN_OR_RETURN(token.rstrip, field.GetBool("rstrip", false));
  PORTOLAN_ASSIGN_OR_RETURN(token.special, field.GetBool("special", false));
  PORTOLAN_ASSIGN_OR_RETURN(token.normalized,
                            field.GetBool("normalized", !token.special));
  return token;
}

absl::Status AddedTokens::Add(const JsonField& field, const Vocabulary& model) {
  PORTOLAN_ASSIGN_OR_RETURN(Token token, ReadToken(field));
  if (token.content.size() > kMaxTokenBytes) {
    return field.Error(absl::StrCat("a token of ", token.content.size(),
                                    " bytes; at most ", kMaxTokenBytes,
                                    " are read"));
  }
  const std::string* in_model = model.Token(token.id);
  if (in_model != nullptr && *in_model != token.content) {
    return field.Error(absl::StrCat("id ", token.id, " of ",
                                    Quoted(token.content), " is that of ",
                                    Quoted(*in_model), " in model.vocab"));
  }
  if (in_model == nullptr && model.Find(token.content).has_value()) {
    return field.Error(
        absl::StrCat("id ", token.id, " of ", Quoted(token.content), " is ",
                     *model.Find(token.content), " in model.vocab"));
  }
  if (vocabulary_.Add(token.content, token.id) !=
      Vocabulary::AddResult::kAdded) {
    return field.Error(absl::StrCat(Quoted(token.content), " or its id ",
                                    token.id, " is already taken"));
  }
  tokens_.push_back(std::move(token));
  return absl::OkStatus();
}

absl::Status AddedTokens::BuildTries(const Normalizer* normalizer) {
  // Where two tokens normalize to the same text, a special one comes first.
  std::stable_partition(tokens_.begin(), tokens_.end(),
                        [](const Token& token) { return token.special; });
  for (size_t i = 0; i < tokens_.size(); ++i) {
    Token& token = tokens_[i];
    index_of_id_[token.id] = i;
    NormalizedText pattern = {token.content, true};
    if (token.normalized && normalizer != nullptr) {
      PORTOLAN_RETURN_IF_ERROR(normalizer->Apply(pattern));
    }
    token.spelling = std::move(pattern.text);
    if (token.spelling.empty()) continue;
    (token.normalized ? normalized_ : raw_).Add(token.spelling, i);
  }
  return absl::OkStatus();
}

void AddedTokens::Find(const StringTrie& trie, std::string_view text,
                       std::vector<Segment>& segments) const {
  segments.clear();
  size_t last = 0;
  for (size_t at = 0; at < text.size();) {
    const std::optional<StringTrie::Match> match = trie.Longest(text, at);
    if (!match.has_value()) {
      ++at;
      continue;
    }
    const Token& token = tokens_[match->index];
    size_t begin = at;
    size_t end = at + match->num_bytes;
    at = end;  // also past a match that is not taken
    if (token.single_word && !IsSingleWord(text, begin, end)) continue;
    if (token.lstrip) begin = std::max(last, SkipSpaceLeft(text, begin, last));
    if (token.rstrip) end = SkipSpaceRight(text, end);
    // A token of white space that the token before has taken counts again,
    // unless it strips to its left and so ends up empty.
    if (begin >= end) continue;
    if (last < begin) segments.push_back({last, begin, std::nullopt});
    segments.push_back({begin, end, token.id});
    last = end;
  }
  if (last < text.size()) segments.push_back({last, text.size(), std::nullopt});
}

bool AddedTokens::IsSpecial(int32_t id) const {
  const auto found = index_of_id_.find(id);
  return found != index_of_id_.end() && tokens_[found->second].special;
}

const std::string* AddedTokens::Spelling(int32_t id) const {
  const auto found = index_of_id_.find(id);
  return found == index_of_id_.end() ? nullptr
                                     : &tokens_[found->second].spelling;
}

}  // namespace portolan
