#include "runtime/serving/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {

Engine::Engine(const Options& options, ForwardPass& forward, KvCache& kv,
               Sampler& sampler, TokenSink& sink, ForwardObserver* observer,
               Profile* profile)
    : options_(options),
      forward_(forward),
      kv_(kv),
      sampler_(sampler),
      sink_(sink),
      observer_(observer),
      profile_(profile),
      batcher_(options.batcher) {
  forward_sequences_.reserve(
      static_cast<size_t>(options.batcher.max_sequences));
}

absl::Status Engine::Add(Request request) {
  const auto prompt = static_cast<int64_t>(request.prompt.size());
  const int64_t room =
      std::min(options_.max_context, int64_t{kv_.num_pages()} * kPageTokens);
  if (prompt < 1) return absl::InvalidArgumentError("the prompt is empty");
  if (request.max_tokens < 1) {
    return absl::InvalidArgumentError("max_tokens must be at least 1");
  }
  if (prompt >= room) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the prompt has ", prompt, " tokens; with one generated token ",
        "at most ", room, " positions fit (context ", options_.max_context,
        ", KV cache ", int64_t{kv_.num_pages()} * kPageTokens, ")"));
  }
  Sequence sequence;
  sequence.tokens = request.prompt;
  sequence.tokens.insert(sequence.tokens.end(), request.generated.begin(),
                         request.generated.end());
  request.max_tokens = std::min(request.max_tokens, room - prompt);
  sequence.tokens.reserve(static_cast<size_t>(prompt + request.max_tokens));
  sequence.pages.reserve(
      static_cast<size_t>(KvPagesFor(prompt + request.max_tokens)));
  const int64_t id = request.id;
  num_prompt_tokens_ += prompt;
  batcher_.Add(id, static_cast<int64_t>(sequence.tokens.size()));
  sequence.request = std::move(request);
  const bool is_new = sequences_.emplace(id, std::move(sequence)).second;
  PORTOLAN_CHECK(is_new);
  return absl::OkStatus();
}

void Engine::Cancel(int64_t id) {
  const auto it = sequences_.find(id);
  if (it != sequences_.end()) Finish(it->second, FinishReason::kCancelled);
}

int64_t Engine::PlanStep() {
  const ProfileScope zone(profile_, Zone::kPlan);
  const Batcher::Plan& plan = batcher_.Next(kv_.num_free());
  Preempt(plan.preempted);
  scheduled_.assign(plan.sequences.begin(), plan.sequences.end());
  PrepareForward(scheduled_);
  forward_.Begin(forward_sequences_);
  return forward_.num_tokens();
}

absl::Status Engine::RunStep(int64_t tokens_of_all_ranks) {
  PORTOLAN_ASSIGN_OR_RETURN(const MatrixView<const float> logits,
                            forward_.Run(tokens_of_all_ranks));
  const ProfileScope zone(profile_, Zone::kSampling);
  SampleTokens(logits);
  if (observer_ != nullptr) {
    // In this order: what a step taught counts for a sequence that it ended.
    observer_->OnStepEnd();
    for (const int64_t id : ended_) observer_->OnSequenceEnd(id);
  }
  ended_.clear();
  return absl::OkStatus();
}

void Engine::Preempt(const std::vector<int64_t>& ids) {
  for (const int64_t id : ids) kv_.Release(sequences_.at(id).pages);
}

void Engine::PrepareForward(const std::vector<ScheduledSequence>& scheduled) {
  forward_sequences_.clear();
  for (const ScheduledSequence& part : scheduled) {
    Sequence& sequence = sequences_.at(part.id);
    const bool grown = kv_.Grow(sequence.pages, part.first + part.num_tokens);
    PORTOLAN_CHECK(grown);  // the batcher counted the pages
    forward_sequences_.push_back(
        {.id = part.id,
         .tokens = std::span<const int32_t>(sequence.tokens)
                       .subspan(static_cast<size_t>(part.first),
                                static_cast<size_t>(part.num_tokens)),
         .first_position = part.first,
         .pages = sequence.pages,
         .logits = part.samples ? LogitRows::kLast : LogitRows::kNone});
  }
}

void Engine::SampleTokens(MatrixView<const float> logits) {
  int64_t row = 0;
  for (const ScheduledSequence& part : scheduled_) {
    if (!part.samples) continue;
    Sequence& sequence = sequences_.at(part.id);
    const int32_t token = sampler_.Sample(
        logits.Row(row++), sequence.request.sampling, sequence.tokens,
        static_cast<int64_t>(sequence.request.prompt.size()));
    Deliver(sequence, token);
  }
}

void Engine::Deliver(Sequence& sequence, int32_t token) {
  const Request& request = sequence.request;
  sequence.tokens.push_back(token);
  ++num_generated_tokens_;
  batcher_.Extend(request.id);
  const auto generated =
      static_cast<int64_t>(sequence.tokens.size() - request.prompt.size());
  const bool stop_string = sink_.OnToken(request.id, token);
  const bool stop_token =
      std::find(request.stop_tokens.begin(), request.stop_tokens.end(),
                token) != request.stop_tokens.end();
  if (stop_string || stop_token) {
    Finish(sequence, FinishReason::kStop);
  } else if (generated >= request.max_tokens) {
    Finish(sequence, FinishReason::kLength);
  }
}

void Engine::Finish(Sequence& sequence, FinishReason reason) {
  const int64_t id = sequence.request.id;
  batcher_.Remove(id);
  kv_.Release(sequence.pages);
  sequences_.erase(id);
  sink_.OnFinish(id, reason);
  ended_.push_back(id);
}

}  // namespace portolan
