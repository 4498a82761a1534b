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
  const auto nothing = [](int64_t) { return Cached{}; };
  const auto all = [this](int64_t id) {
    return std::ranges::find(running_, id, &Sequence::id)->num_pages;
  };
  return Next(free_pages, {nothing, all});
}

const Batcher::Plan& Batcher::Next(int32_t free_pages, const Pages& pages) {
  plan_.sequences.clear();
  plan_.preempted.clear();
  Room room{options_.tokens_per_step, free_pages, pages};
  while (true) {
    room.tokens = options_.tokens_per_step;
    ScheduleDecoding(room);
    SchedulePrompts(room);
    if (!plan_.sequences.empty() || running_.empty()) return plan_;
    // Several half-computed prompts hold all pages and none can go on.
    PORTOLAN_CHECK(running_.size() > 1);
    PreemptYoungest(room);
  }
}

// Sequences that lack just their last token. A victim of preemption is always
// younger than the sequence that needs the page, hence further behind.
void Batcher::ScheduleDecoding(Room& room) {
  for (size_t i = 0; i < running_.size(); ++i) {
    if (running_[i].num_tokens - running_[i].num_computed != 1) continue;
    PORTOLAN_CHECK(room.tokens > 0);  // each was in the step before
    while (!Reserve(running_[i], running_[i].num_tokens, room)) {
      // Alone with too few pages: the caller promised room for one sequence.
      PORTOLAN_CHECK(running_.size() > 1);
      PreemptYoungest(room);
      if (i == running_.size()) return;  // it was the youngest itself
    }
    Schedule(running_[i], 1);
    --room.tokens;
  }
}

// Prompts that are partly computed, then new ones. No preemption for a prompt:
// it waits until pages are free.
void Batcher::SchedulePrompts(Room& room) {
  for (size_t i = 0; room.tokens > 0; ++i) {
    const bool starts = i == running_.size();
    if (starts && !StartNext(room)) return;
    Sequence& sequence = running_[i];
    const int64_t missing = sequence.num_tokens - sequence.num_computed;
    if (missing == 0) continue;
    const int64_t space = (int64_t{sequence.num_pages} + room.free_pages) *
                              options_.tokens_per_page -
                          sequence.num_computed;
    const int64_t chunk = std::min({missing, room.tokens, space});
    if (chunk <= 0) {
      if (!starts) continue;
      PutBack(room);
      return;
    }
    PORTOLAN_CHECK(Reserve(sequence, sequence.num_computed + chunk, room));
    Schedule(sequence, chunk);
    room.tokens -= chunk;
  }
}

// Lets the first waiting sequence run; false if none may.
bool Batcher::StartNext(Room& room) {
  const bool full = num_running() >= options_.max_sequences;
  if (waiting_.empty() || full || !plan_.preempted.empty()) return false;
  Sequence sequence = waiting_.front();
  waiting_.pop_front();
  const Cached cached = room.pages.adopt(sequence.id);
  sequence.num_computed = cached.num_tokens;
  sequence.num_pages =
      static_cast<int32_t>(cached.num_tokens / options_.tokens_per_page);
  room.free_pages -= cached.pages_taken;
  running_.push_back(sequence);
  return true;
}

bool Batcher::Reserve(Sequence& sequence, int64_t num_tokens,
                      Room& room) const {
  const auto wanted = static_cast<int32_t>(
      (num_tokens + options_.tokens_per_page - 1) / options_.tokens_per_page);
  const int32_t more = std::max(0, wanted - sequence.num_pages);
  if (more > room.free_pages) return false;
  room.free_pages -= more;
  sequence.num_pages += more;
  return true;
}

void Batcher::PreemptYoungest(Room& room) {
  plan_.preempted.push_back(running_.back().id);
  PutBack(room);
}

// The youngest running sequence waits again, before all others.
void Batcher::PutBack(Room& room) {
  const Sequence sequence = running_.back();
  room.free_pages += room.pages.give_back(sequence.id);
  running_.pop_back();
  waiting_.push_front({sequence.id, sequence.num_tokens, 0, 0});
}

void Batcher::Schedule(Sequence& sequence, int64_t num_tokens) {
  const bool samples =
      sequence.num_computed + num_tokens == sequence.num_tokens;
  plan_.sequences.push_back(
      {sequence.id, sequence.num_computed, num_tokens, samples});
  sequence.num_computed += num_tokens;
}

}  // namespace portolan
