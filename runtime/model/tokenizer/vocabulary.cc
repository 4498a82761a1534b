#include "runtime/model/tokenizer/vocabulary.h"

#include <algorithm>

namespace portolan {
namespace {

absl::string_view View(std::string_view text) {
  return {text.data(), text.size()};
}

}  // namespace

Vocabulary::AddResult Vocabulary::Add(std::string_view token, int32_t id) {
  if (ids_.contains(View(token))) return AddResult::kTokenExists;
  if (by_id_.contains(id)) return AddResult::kIdExists;
  const std::string& stored = tokens_.emplace_back(token);
  ids_.emplace(stored, id);
  by_id_.emplace(id, &stored);
  end_id_ = std::max(end_id_, id + 1);
  return AddResult::kAdded;
}

std::optional<int32_t> Vocabulary::Find(std::string_view token) const {
  const auto found = ids_.find(View(token));
  if (found == ids_.end()) return std::nullopt;
  return found->second;
}

const std::string* Vocabulary::Token(int32_t id) const {
  const auto found = by_id_.find(id);
  return found == by_id_.end() ? nullptr : found->second;
}

void Vocabulary::Reserve(size_t num_tokens) {
  ids_.reserve(num_tokens);
  by_id_.reserve(num_tokens);
}

}  // namespace portolan
