#include "runtime/serving/engine.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

bool AllFinite(std::span<const float> values) {
  float sum = 0;  // of zeros, or NaN: a loop without a branch
  for (const float value : values) sum += value * 0.0f;
  return sum == 0;
}

}  // namespace

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
  const int64_t room = max_positions();
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
  const int32_t pages = KvPagesFor(prompt + request.max_tokens);
  sequence.pages.reserve(static_cast<size_t>(pages));
  committed_pages_ += pages;
  const int64_t id = request.id;
  counters_.prompt_tokens += prompt;
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

bool Engine::HasStarted(int64_t id) const {
  const auto it = sequences_.find(id);
  return it != sequences_.end() && it->second.num_cached >= 0;
}

int64_t Engine::max_positions() const {
  return std::min(options_.max_context, int64_t{kv_.num_pages()} * kPageTokens);
}

Engine::Room Engine::room() const {
  const int32_t sequences = options_.batcher.max_sequences - num_sequences();
  const int64_t pages = kv_.num_pages() - committed_pages_;
  return {.sequences = std::max(0, sequences),
          .kv_tokens = std::max<int64_t>(0, pages) * kPageTokens};
}

double Engine::kv_usage() const {
  return 1 - static_cast<double>(kv_.num_free()) / kv_.num_pages();
}

int64_t Engine::PlanStep() {
  const ProfileScope zone(profile_, Zone::kPlan);
  scheduled_.clear();
  if (!paused_) {
    const auto adopt = [this](int64_t id) {
      return AdoptPrefix(sequences_.at(id));
    };
    const auto give_back = [this](int64_t id) {
      return GiveBack(sequences_.at(id));
    };
    const Batcher::Plan& plan =
        batcher_.Next(kv_.num_free(), {adopt, give_back});
    counters_.preemptions += static_cast<int64_t>(plan.preempted.size());
    scheduled_.assign(plan.sequences.begin(), plan.sequences.end());
  }
  PrepareForward(scheduled_);
  forward_.Begin(forward_sequences_);
  return forward_.num_tokens();
}

absl::Status Engine::RunStep(int64_t tokens_of_all_ranks) {
  step_tokens_.Add(static_cast<double>(tokens_of_all_ranks));
  PORTOLAN_ASSIGN_OR_RETURN(const MatrixView<const float> logits,
                            forward_.Run(tokens_of_all_ranks));
  const ProfileScope zone(profile_, Zone::kSampling);
  if (options_.share_prefixes) PublishPages();
  PORTOLAN_RETURN_IF_ERROR(SampleTokens(logits));
  if (observer_ != nullptr) {
    // In this order: what a step taught counts for a sequence that it ended.
    observer_->OnStepEnd();
    for (const int64_t id : ended_) observer_->OnSequenceEnd(id);
  }
  ended_.clear();
  return absl::OkStatus();
}

Batcher::Cached Engine::AdoptPrefix(Sequence& sequence) {
  if (!options_.share_prefixes) return {};
  const int32_t free_before = kv_.num_free();
  const int64_t found = kv_.Adopt(sequence.pages, sequence.tokens);
  sequence.num_published = static_cast<int32_t>(sequence.pages.size());
  if (sequence.num_cached < 0) {
    const auto prompt = static_cast<int64_t>(sequence.request.prompt.size());
    sequence.num_cached = std::min(found, prompt);
    counters_.prefix_queries += prompt;
    counters_.prefix_hits += sequence.num_cached;
  }
  return {.num_tokens = found, .pages_taken = free_before - kv_.num_free()};
}

int32_t Engine::GiveBack(Sequence& sequence) {
  sequence.num_published = 0;
  return kv_.Release(sequence.pages);
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

// The step that has run filled pages: others may share them from now on.
void Engine::PublishPages() {
  for (const ScheduledSequence& part : scheduled_) {
    Sequence& sequence = sequences_.at(part.id);
    const auto computed = static_cast<size_t>(part.first + part.num_tokens);
    sequence.num_published =
        kv_.Publish(sequence.pages, sequence.num_published,
                    std::span<const int32_t>(sequence.tokens).first(computed));
  }
}

absl::Status Engine::SampleTokens(MatrixView<const float> logits) {
  int64_t row = 0;
  for (const ScheduledSequence& part : scheduled_) {
    if (!part.samples) continue;
    Sequence& sequence = sequences_.at(part.id);
    const Request& request = sequence.request;
    const std::span<const float> of_token = logits.Row(row++);
    if (!AllFinite(of_token)) {
      return absl::DataLossError(absl::StrCat(
          "sequence ", part.id, ", position ", part.first + part.num_tokens,
          ": the logits are not finite: weights of the model are damaged"));
    }
    const int32_t token =
        sampler_.Sample(of_token, request.sampling, sequence.tokens,
                        static_cast<int64_t>(request.prompt.size()));
    logprobs_.clear();
    if (request.num_logprobs.has_value()) {
      ComputeLogprobs(of_token, token, *request.num_logprobs, logprobs_);
    }
    Deliver(sequence, {.token = token, .logprobs = logprobs_});
  }
  return absl::OkStatus();
}

void Engine::Deliver(Sequence& sequence, const GeneratedToken& token) {
  const Request& request = sequence.request;
  sequence.tokens.push_back(token.token);
  ++counters_.generated_tokens;
  batcher_.Extend(request.id);
  const auto generated =
      static_cast<int64_t>(sequence.tokens.size() - request.prompt.size());
  const bool stop_string = sink_.OnToken(request.id, token);
  if (stop_string || request.Stops(token.token)) {
    Finish(sequence, FinishReason::kStop);
  } else if (generated >= request.max_tokens) {
    Finish(sequence, FinishReason::kLength);
  }
}

void Engine::Finish(Sequence& sequence, FinishReason reason) {
  const Request& request = sequence.request;
  const int64_t id = request.id;
  const SequenceEnd end{
      .reason = reason,
      .cached_prompt_tokens = std::max<int64_t>(0, sequence.num_cached)};
  committed_pages_ -= KvPagesFor(static_cast<int64_t>(request.prompt.size()) +
                                 request.max_tokens);
  batcher_.Remove(id);
  kv_.Release(sequence.pages);
  sequences_.erase(id);
  sink_.OnFinish(id, end);
  ended_.push_back(id);
}

}  // namespace portolan
