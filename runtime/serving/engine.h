#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"
#include "runtime/base/histogram.h"
#include "runtime/model/forward.h"
#include "runtime/model/kv_cache.h"
#include "runtime/model/sampler.h"
#include "runtime/serving/batcher.h"
#include "runtime/serving/request.h"

namespace portolan {

// The sequences of one rank: plans a step, runs the forward pass over it and
// samples the next tokens. Every step is collective (see ForwardPass), also
// with no sequence here.
//
// Thread-compatible: on the step loop's thread only.
class Engine {
 public:
  struct Options {
    Batcher::Options batcher;
    int64_t max_context = 0;     // positions a sequence may have
    bool share_prefixes = true;  // reuse pages of equal beginnings
  };

  // Counters since the start.
  struct Counters {
    int64_t prompt_tokens = 0;  // of the requests added
    int64_t generated_tokens = 0;
    int64_t prefix_queries = 0;  // tokens looked up, and found, in the cache
    int64_t prefix_hits = 0;
    int64_t preemptions = 0;
  };

  // What more the rank could take, every sequence coming to its full length.
  struct Room {
    int32_t sequences = 0;
    int64_t kv_tokens = 0;
  };

  // All must outlive the engine; `observer` and `profile` may be null.
  Engine(const Options& options, ForwardPass& forward, KvCache& kv,
         Sampler& sampler, TokenSink& sink, ForwardObserver* observer = nullptr,
         Profile* profile = nullptr);

  // Takes a request in; its first step may come later.
  // Errors: kInvalidArgument if the prompt is empty or does not fit the context
  // or the KV cache, or max_tokens < 1.
  absl::Status Add(Request request);

  // Ends a sequence at this step border, its pages and slot free for the next
  // step; unknown ids are ignored.
  void Cancel(int64_t id);

  // It was in a step, however short; false for unknown ids.
  bool HasStarted(int64_t id) const;

  // While paused, steps of this rank have no tokens.
  void Pause(bool paused) { paused_ = paused; }

  bool HasWork() const { return batcher_.HasWork(); }
  int32_t num_sequences() const {
    return static_cast<int32_t>(sequences_.size());
  }
  int32_t num_running() const { return batcher_.num_running(); }
  int32_t num_waiting() const { return batcher_.num_waiting(); }
  const Counters& counters() const { return counters_; }
  // Tokens, prompt chunks included, that each step with work had on all ranks.
  const Histogram& step_tokens() const { return step_tokens_; }
  Room room() const;
  double kv_usage() const;  // share of the pages that sequences hold
  // Longest sequence: the context, or the whole KV cache.
  int64_t max_positions() const;

  // Plans the next step of this rank and embeds its tokens; returns how many
  // there are.
  int64_t PlanStep();

  // Runs the planned step; collective, also with zero tokens here.
  // Errors: as ForwardPass::Run(); the job cannot go on after one.
  absl::Status RunStep(int64_t tokens_of_all_ranks);

 private:
  struct Sequence {
    Request request;
    std::vector<int32_t> tokens;  // prompt and generated ones
    std::vector<int32_t> pages;
    int32_t num_published = 0;  // of the pages
    // Found in the cache when it first ran; -1: it has not run yet.
    int64_t num_cached = -1;
  };

  Batcher::Cached AdoptPrefix(Sequence& sequence);
  int32_t GiveBack(Sequence& sequence);
  void PrepareForward(const std::vector<ScheduledSequence>& scheduled);
  void PublishPages();
  absl::Status SampleTokens(MatrixView<const float> logits);
  void Deliver(Sequence& sequence, const GeneratedToken& token);
  void Finish(Sequence& sequence, FinishReason reason);

  const Options options_;
  ForwardPass& forward_;
  KvCache& kv_;
  Sampler& sampler_;
  TokenSink& sink_;
  ForwardObserver* const observer_;
  Profile* const profile_;
  Batcher batcher_;
  std::map<int64_t, Sequence> sequences_;     // by id; stable addresses
  std::vector<ScheduledSequence> scheduled_;  // the planned step
  std::vector<ForwardSequence> forward_sequences_;
  std::vector<int64_t> ended_;          // of which the observer is not told yet
  std::vector<TokenLogprob> logprobs_;  // of the token being delivered
  int64_t committed_pages_ = 0;         // if all sequences grow to their end
  bool paused_ = false;
  Counters counters_;
  Histogram step_tokens_{
      {1, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384}};
};

}  // namespace portolan
