#include "runtime/serving/batcher.h"

#include <algorithm>

#include "runtime/base/check.h"

namespace portolan {

Batcher::Batcher(const Options& options) : options_(options) {
  PORTOLAN_CHECK(options.max_sequences >= 1 && options.tokens_per_step >= 1);
}

void Batcher::Add(int64_t id, int64_t num_tokens) {
  PORTOLAN_CHECK(num_tokens >= 1);
  waiting_.push_back({id, num_tokens, 0, 0});
}

void Batcher::Extend(int64_t id) {
  for (Sequence& sequence : running_) {
    if (sequence.id == id) {
      ++sequence.num_tokens;
      return;
    }
  }
  PORTOLAN_CHECK(false);  // only a running sequence is given tokens
}

void Batcher::Remove(int64_t id) {
  const auto is_it = [id](const Sequence& s) { return s.id == id; };
  std::erase_if(running_, is_it);
  std::erase_if(waiting_, is_it);
}

const Batcher::Plan& Batcher::Next(int32_t free_pages) {
  plan_.sequences.clear();
  plan_.preempted.clear();
  while (true) {
    int64_t budget = options_.tokens_per_step;
    ScheduleDecoding(budget, free_pages);
    SchedulePrompts(budget, free_pages);
    if (!plan_.sequences.empty() || running_.empty()) return plan_;
    // Several half-computed prompts hold all pages and none can go on.
    PORTOLAN_CHECK(running_.size() > 1);
    PreemptYoungest(free_pages);
  }
}

// Sequences that lack just their last token. A victim of preemption is always
// younger than the sequence that needs the page, hence further behind.
void Batcher::ScheduleDecoding(int64_t& budget, int32_t& free_pages) {
  for (size_t i = 0; i < running_.size() && budget > 0; ++i) {
    if (running_[i].num_tokens - running_[i].num_computed != 1) continue;
    while (!Reserve(running_[i], running_[i].num_tokens, free_pages)) {
      // Alone with too few pages: the caller promised room for one sequence.
      PORTOLAN_CHECK(running_.size() > 1);
      PreemptYoungest(free_pages);
      if (i == running_.size()) return;  // it was the youngest itself
    }
    Schedule(running_[i], 1);
    --budget;
  }
}

// Prompts that are partly computed, then new ones. No preemption for a prompt:
// it waits until pages are free.
void Batcher::SchedulePrompts(int64_t& budget, int32_t& free_pages) {
  for (size_t i = 0; budget > 0; ++i) {
    if (i == running_.size()) {
      const bool room = num_running() < options_.max_sequences;
      if (waiting_.empty() || !room || !plan_.preempted.empty()) return;
      running_.push_back(waiting_.front());
      waiting_.pop_front();
    }
    Sequence& sequence = running_[i];
    const int64_t missing = sequence.num_tokens - sequence.num_computed;
    if (missing == 0 || (missing == 1 && sequence.num_computed > 0)) continue;
    const int64_t room =
        (int64_t{sequence.num_pages} + free_pages) * options_.tokens_per_page -
        sequence.num_computed;
    const int64_t chunk = std::min({missing, budget, room});
    if (chunk <= 0) {
      if (sequence.num_computed > 0) continue;
      waiting_.push_front(sequence);
      running_.erase(running_.begin() + static_cast<ptrdiff_t>(i));
      return;
    }
    PORTOLAN_CHECK(
        Reserve(sequence, sequence.num_computed + chunk, free_pages));
    Schedule(sequence, chunk);
    budget -= chunk;
  }
}

bool Batcher::Reserve(Sequence& sequence, int64_t num_tokens,
                      int32_t& free_pages) {
  const auto wanted = static_cast<int32_t>(
      (num_tokens + options_.tokens_per_page - 1) / options_.tokens_per_page);
  const int32_t more = std::max(0, wanted - sequence.num_pages);
  if (more > free_pages) return false;
  free_pages -= more;
  sequence.num_pages += more;
  return true;
}

void Batcher::PreemptYoungest(int32_t& free_pages) {
  Sequence victim = running_.back();
  running_.pop_back();
  free_pages += victim.num_pages;
  plan_.preempted.push_back(victim.id);
  waiting_.push_front({victim.id, victim.num_tokens, 0, 0});
}

void Batcher::Schedule(Sequence& sequence, int64_t num_tokens) {
  const bool samples =
      sequence.num_computed + num_tokens == sequence.num_tokens;
  plan_.sequences.push_back(
      {sequence.id, sequence.num_computed, num_tokens, samples});
  sequence.num_computed += num_tokens;
}

}  // namespace portolan
