#include "runtime/model/tokenizer/bpe.h"

#include <algorithm>
#include <utility>

#include "absl/hash/hash.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "runtime/base/status_macros.h"
#include "runtime/model/tokenizer/unicode.h"

namespace portolan {
namespace {

constexpr size_t kMaxCachedWordBytes = 64;
constexpr size_t kMaxCachedWordsPerShard = 2048;

absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

uint64_t PairKey(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 |
         static_cast<uint32_t>(right);
}

}  // namespace

absl::StatusOr<std::unique_ptr<Bpe>> Bpe::FromJson(const JsonField& model) {
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField vocab, model.Get("vocab"));
  PORTOLAN_ASSIGN_OR_RETURN(const JsonField merges, model.Get("merges"));
  auto bpe = std::unique_ptr<Bpe>(new Bpe());
  PORTOLAN_RETURN_IF_ERROR(bpe->ReadVocabulary(vocab));
  PORTOLAN_RETURN_IF_ERROR(bpe->ReadOptions(model));
  PORTOLAN_RETURN_IF_ERROR(bpe->ReadMerges(merges));
  return bpe;
}

absl::Status Bpe::ReadOptions(const JsonField& model) {
  const std::optional<JsonField> dropout = model.Find("dropout");
  if (dropout.has_value() &&
      !(dropout->value().is_number() && dropout->value().get<double>() == 0)) {
    return dropout->Error("dropout is for training; set it to null");
  }
  PORTOLAN_ASSIGN_OR_RETURN(continuing_prefix_,
                            model.GetString("continuing_subword_prefix", ""));
  PORTOLAN_ASSIGN_OR_RETURN(end_suffix_,
                            model.GetString("end_of_word_suffix", ""));
  PORTOLAN_ASSIGN_OR_RETURN(fuse_unk_, model.GetBool("fuse_unk", false));
  PORTOLAN_ASSIGN_OR_RETURN(ignore_merges_,
                            model.GetBool("ignore_merges", false));
  PORTOLAN_ASSIGN_OR_RETURN(byte_fallback_,
                            model.GetBool("byte_fallback", false));
  PORTOLAN_ASSIGN_OR_RETURN(unk_token_, model.GetString("unk_token", ""));
  unk_id_ = vocabulary_.Find(unk_token_);
  FindByteTokens();
  return absl::OkStatus();
}

absl::Status Bpe::ReadVocabulary(const JsonField& vocab) {
  if (!vocab.value().is_object()) {
    return vocab.Error(absl::StrCat("an object was expected, not ",
                                    vocab.value().type_name()));
  }
  vocabulary_.Reserve(vocab.value().size());
  for (const auto& [token, number] : vocab.value().items()) {
    const auto* id = number.get_ptr<const nlohmann::json::number_unsigned_t*>();
    if (id == nullptr || *id >= kMaxTokenIds) {
      return vocab.Error(absl::StrCat("the id of ", Quoted(token),
                                      " is no integer from 0 to ",
                                      kMaxTokenIds - 1));
    }
    const auto token_id = static_cast<int32_t>(*id);
    if (vocabulary_.Add(token, token_id) != Vocabulary::AddResult::kAdded) {
      const std::string* other = vocabulary_.Token(token_id);
      return vocab.Error(absl::StrCat("id ", token_id, " stands for both ",
                                      Quoted(other == nullptr ? token : *other),
                                      " and ", Quoted(token)));
    }
  }
  return absl::OkStatus();
}

// A merge is the string "left right" or, where tokens hold spaces, the pair
// ["left", "right"].
absl::Status Bpe::ReadMerges(const JsonField& merges) {
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> elements,
                            merges.Elements());
  merges_.reserve(elements.size());
  uint32_t rank = 0;
  for (const JsonField& element : elements) {
    if (element.value().is_array()) {
      PORTOLAN_ASSIGN_OR_RETURN(const std::vector<JsonField> pair,
                                element.Elements());
      if (pair.size() != 2) return element.Error("a pair was expected");
      PORTOLAN_ASSIGN_OR_RETURN(const std::string left, pair[0].AsString());
      PORTOLAN_ASSIGN_OR_RETURN(const std::string right, pair[1].AsString());
      PORTOLAN_RETURN_IF_ERROR(AddMerge(element, left, right, rank++));
      continue;
    }
    PORTOLAN_ASSIGN_OR_RETURN(const std::string line, element.AsString());
    if (line.starts_with("#version")) continue;
    const size_t space = line.find(' ');
    if (space == std::string::npos ||
        line.find(' ', space + 1) != std::string::npos) {
      return element.Error("two tokens and one space between were expected");
    }
    const std::string_view both = line;
    PORTOLAN_RETURN_IF_ERROR(AddMerge(element, both.substr(0, space),
                                      both.substr(space + 1), rank++));
  }
  return absl::OkStatus();
}

absl::Status Bpe::AddMerge(const JsonField& field, std::string_view left,
                           std::string_view right, uint32_t rank) {
  if (right.size() < continuing_prefix_.size()) {
    return field.Error("shorter than continuing_subword_prefix");
  }
  const std::string merged =
      absl::StrCat(View(left), View(right.substr(continuing_prefix_.size())));
  std::array<int32_t, 3> ids{};
  const std::array<std::string_view, 3> tokens = {left, right, merged};
  for (size_t i = 0; i < tokens.size(); ++i) {
    const std::optional<int32_t> id = vocabulary_.Find(tokens[i]);
    if (!id.has_value()) {
      return field.Error(
          absl::StrCat("the token ", Quoted(tokens[i]), " is not in vocab"));
    }
    ids[i] = *id;
  }
  merges_.insert_or_assign(PairKey(ids[0], ids[1]), Merge{rank, ids[2]});
  return absl::OkStatus();
}

void Bpe::FindByteTokens() {
  for (size_t byte = 0; byte < byte_tokens_.size(); ++byte) {
    byte_tokens_[byte] =
        vocabulary_.Find(absl::StrFormat("<0x%02X>", byte)).value_or(-1);
  }
}

Bpe::CacheShard& Bpe::ShardOf(std::string_view word) const {
  return cache_[absl::HashOf(View(word)) % cache_.size()];
}

absl::Status Bpe::Encode(std::string_view word, Scratch& scratch,
                         std::vector<int32_t>& out) const {
  if (ignore_merges_) {
    if (const std::optional<int32_t> id = vocabulary_.Find(word)) {
      out.push_back(*id);
      return absl::OkStatus();
    }
  }
  if (word.size() > kMaxCachedWordBytes) {
    return EncodeUncached(word, scratch, out);
  }
  CacheShard& shard = ShardOf(word);
  {
    MutexLock lock(shard.mu);
    const auto cached = shard.words.find(View(word));
    if (cached != shard.words.end()) {
      out.insert(out.end(), cached->second.begin(), cached->second.end());
      return absl::OkStatus();
    }
  }
  const auto first_id = static_cast<ptrdiff_t>(out.size());
  PORTOLAN_RETURN_IF_ERROR(EncodeUncached(word, scratch, out));
  MutexLock lock(shard.mu);
  if (shard.words.size() >= kMaxCachedWordsPerShard) shard.words.clear();
  shard.words.try_emplace(View(word), out.begin() + first_id, out.end());
  return absl::OkStatus();
}

absl::Status Bpe::EncodeUncached(std::string_view word, Scratch& scratch,
                                 std::vector<int32_t>& out) const {
  PORTOLAN_RETURN_IF_ERROR(StartSymbols(word, scratch));
  MergeAll(scratch);
  for (const Scratch::Symbol& symbol : scratch.symbols) {
    if (!symbol.merged_away) out.push_back(symbol.id);
  }
  return absl::OkStatus();
}

// The symbols of single characters. A run of unknown ones waits in
// `num_unknown` and is placed before the next known character, as the
// reference does; bytes from byte_fallback do not end the wait.
absl::Status Bpe::StartSymbols(std::string_view word, Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  symbols.clear();
  const auto append = [&](int32_t id) { symbols.push_back({id, 0, 0, false}); };
  bool unknown_waits = false;
  for (size_t at = 0; at < word.size();) {
    const size_t num_bytes = CharAt(word, at).num_bytes;
    const std::string_view character = word.substr(at, num_bytes);
    const bool is_last = at + num_bytes == word.size();
    const std::optional<int32_t> id =
        FindStart(character, at == 0, is_last, scratch);
    at += num_bytes;
    if (id.has_value()) {
      if (unknown_waits) append(*unk_id_);
      unknown_waits = false;
      append(*id);
    } else if (!(byte_fallback_ &&
                 AppendByteTokens(
                     scratch.affixed.empty() ? character : scratch.affixed,
                     scratch)) &&
               !unk_token_.empty()) {
      if (!unk_id_.has_value()) {
        return absl::InvalidArgumentError(
            absl::StrCat("tokenizer: the text needs the unknown token ",
                         Quoted(unk_token_), ", which is not in vocab"));
      }
      if (unknown_waits && !fuse_unk_) append(*unk_id_);
      unknown_waits = true;
    }
  }
  if (unknown_waits) append(*unk_id_);
  return absl::OkStatus();
}

// The token of `character` with the affixes of its place in the word, which
// stays in scratch.affixed; that is empty where no affix applies.
std::optional<int32_t> Bpe::FindStart(std::string_view character, bool is_first,
                                      bool is_last, Scratch& scratch) const {
  scratch.affixed.clear();
  const bool has_prefix = !is_first && !continuing_prefix_.empty();
  const bool has_suffix = is_last && !end_suffix_.empty();
  if (!has_prefix && !has_suffix) return vocabulary_.Find(character);
  if (has_prefix) scratch.affixed += continuing_prefix_;
  scratch.affixed += character;
  if (has_suffix) scratch.affixed += end_suffix_;
  return vocabulary_.Find(scratch.affixed);
}

// All bytes have tokens, or nothing is appended.
bool Bpe::AppendByteTokens(std::string_view character, Scratch& scratch) const {
  const auto token_of = [&](char c) {
    return byte_tokens_[static_cast<uint8_t>(c)];
  };
  if (!std::all_of(character.begin(), character.end(),
                   [&](char c) { return token_of(c) >= 0; })) {
    return false;
  }
  for (const char c : character) {
    scratch.symbols.push_back({token_of(c), 0, 0, false});
  }
  return true;
}

void Bpe::PushCandidate(int32_t left, Scratch& scratch) const {
  if (left < 0) return;
  const int32_t right = scratch.symbols[left].next;
  if (right < 0) return;
  const auto merge = merges_.find(
      PairKey(scratch.symbols[left].id, scratch.symbols[right].id));
  if (merge == merges_.end()) return;
  scratch.heap.push_back({merge->second.rank, left, merge->second.merged_id});
  std::push_heap(scratch.heap.begin(), scratch.heap.end(),
                 [](const auto& a, const auto& b) {
                   return std::pair(a.rank, a.left) > std::pair(b.rank, b.left);
                 });
}

void Bpe::MergeAll(Scratch& scratch) const {
  std::vector<Scratch::Symbol>& symbols = scratch.symbols;
  std::vector<Scratch::Candidate>& heap = scratch.heap;
  heap.clear();
  const auto num_symbols = static_cast<int32_t>(symbols.size());
  for (int32_t i = 0; i < num_symbols; ++i) {
    symbols[i].previous = i - 1;
    symbols[i].next = i + 1 < num_symbols ? i + 1 : -1;
  }
  for (int32_t i = 0; i + 1 < num_symbols; ++i) PushCandidate(i, scratch);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), [](const auto& a, const auto& b) {
      return std::pair(a.rank, a.left) > std::pair(b.rank, b.left);
    });
    const Scratch::Candidate best = heap.back();
    heap.pop_back();
    Scratch::Symbol& left = symbols[best.left];
    if (left.merged_away || left.next < 0) continue;
    Scratch::Symbol& right = symbols[left.next];
    // Stale if another merge has changed the pair since.
    const auto merge = merges_.find(PairKey(left.id, right.id));
    if (merge == merges_.end() || merge->second.merged_id != best.merged_id) {
      continue;
    }
    left.id = best.merged_id;
    left.next = right.next;
    right.merged_away = true;
    if (right.next >= 0) symbols[right.next].previous = best.left;
    PushCandidate(left.previous, scratch);
    PushCandidate(best.left, scratch);
  }
}

}  // namespace portolan
