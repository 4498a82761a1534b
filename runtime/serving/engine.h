#pragma once

#include <cstdint>
#include <map>
#include <vector>

#include "absl/status/status.h"
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
    int64_t max_context = 0;  // positions a sequence may have
  };

  // All must outlive the engine; `observer` and `profile` may be null.
  Engine(const Options& options, ForwardPass& forward, KvCache& kv,
         Sampler& sampler, TokenSink& sink, ForwardObserver* observer = nullptr,
         Profile* profile = nullptr);

  // Takes a request in; its first step may come later.
  // Errors: kInvalidArgument if the prompt is empty or does not fit the context
  // or the KV cache, or max_tokens < 1.
  absl::Status Add(Request request);

  // Ends a sequence at this step border; unknown ids are ignored.
  void Cancel(int64_t id);

  bool HasWork() const { return batcher_.HasWork(); }
  int32_t num_sequences() const {
    return static_cast<int32_t>(sequences_.size());
  }
  int64_t num_prompt_tokens() const { return num_prompt_tokens_; }
  int64_t num_generated_tokens() const { return num_generated_tokens_; }

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
  };

  void Preempt(const std::vector<int64_t>& ids);
  void PrepareForward(const std::vector<ScheduledSequence>& scheduled);
  void SampleTokens(MatrixView<const float> logits);
  void Deliver(Sequence& sequence, int32_t token);
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
  std::vector<int64_t> ended_;  // of which the observer is not told yet
  int64_t num_prompt_tokens_ = 0;
  int64_t num_generated_tokens_ = 0;
};

}  // namespace portolan
