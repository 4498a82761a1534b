#pragma once

#include <cstdint>
#include <deque>
#include <span>
#include <vector>

#include "absl/functional/function_ref.h"

namespace portolan {

// Which tokens of which sequences one step of this rank computes.
struct ScheduledSequence {
  int64_t id = 0;          // as given to Add()
  int64_t first = 0;       // position of the first token to compute
  int64_t num_tokens = 0;  // prompt chunk, or 1 while decoding
  bool samples = false;    // the step ends with this sequence's next token
};

// Policy of continuous batching: decoding sequences first, one token each, then
// chunks of prompts in the order of arrival, as far as the token budget of a
// step, the sequence limit and the free KV pages allow. A sequence comes to
// decode by a token of the budget, beside all that decode already, so never
// more decode than the budget has tokens and each is in every step; prompts
// wait when the budget is that small. When pages run out, the youngest running
// sequence gives its pages back and is computed again later (its tokens are
// kept by the caller), so the oldest always advances.
//
// Sequences may share pages; their owner then says what is shared (Pages).
//
// Pure: no clock, no I/O; equal events give equal plans. Thread-compatible.
class Batcher {
 public:
  struct Options {
    int32_t max_sequences = 8;  // running at a time
    int64_t tokens_per_step = 512;
    int32_t tokens_per_page = 32;
  };

  struct Plan {
    std::vector<ScheduledSequence> sequences;
    std::vector<int64_t> preempted;  // their pages were given back
  };

  // What a sequence that begins to run finds in the KV cache already.
  struct Cached {
    int64_t num_tokens = 0;   // a multiple of the page size, and fewer than
                              // the sequence has
    int32_t pages_taken = 0;  // free before: no other sequence held them
  };
  // Does what the batcher decides, at once.
  struct Pages {
    absl::FunctionRef<Cached(int64_t id)> adopt;
    // Returns the number of pages that came free.
    absl::FunctionRef<int32_t(int64_t id)> give_back;
  };

  explicit Batcher(const Options& options);

  // A new sequence that has `num_tokens` >= 1 known tokens (its prompt and, if
  // it is taken up again, what it had generated).
  void Add(int64_t id, int64_t num_tokens);

  // Plans the next step. `free_pages`: KV pages that no sequence holds.
  // Valid until the next call.
  const Plan& Next(int32_t free_pages, const Pages& pages);
  // As above where nothing is shared: a victim's pages all come free.
  const Plan& Next(int32_t free_pages);

  // The step gave the sequence one more token.
  void Extend(int64_t id);

  // The sequence has ended or was cancelled; its pages are free again.
  void Remove(int64_t id);

  bool HasWork() const { return !running_.empty() || !waiting_.empty(); }
  int32_t num_running() const { return static_cast<int32_t>(running_.size()); }
  int32_t num_waiting() const { return static_cast<int32_t>(waiting_.size()); }

 private:
  struct Sequence {
    int64_t id;
    int64_t num_tokens;    // known
    int64_t num_computed;  // of them in the KV cache
    int32_t num_pages;
  };

  // What is left of a step while it is planned.
  struct Room {
    int64_t tokens;
    int32_t free_pages;
    const Pages& pages;
  };

  bool Reserve(Sequence& sequence, int64_t num_tokens, Room& room) const;
  void PreemptYoungest(Room& room);
  void Schedule(Sequence& sequence, int64_t num_tokens);
  void ScheduleDecoding(Room& room);
  void SchedulePrompts(Room& room);
  bool StartNext(Room& room);
  void PutBack(Room& room);

  const Options options_;
  std::deque<Sequence> running_;  // oldest first
  std::deque<Sequence> waiting_;
  Plan plan_;
};

}  // namespace portolan
