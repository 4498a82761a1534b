#include "launcher/job_agreement.h"

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <type_traits>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace portolan {
namespace {

constexpr absl::string_view kSameJob =
    "give every rank the same prompts and sampling flags";

template <typename T>
requires std::is_arithmetic_v<T> uint64_t Mix(uint64_t digest, T value) {
  return Digest(std::as_bytes(std::span(&value, 1)), digest);
}

// Lengths too, so that no two lists run together alike.
uint64_t Mix(uint64_t digest, const std::string& text) {
  return Digest(std::as_bytes(std::span(text)), Mix(digest, text.size()));
}

template <typename T>
uint64_t Mix(uint64_t digest, const std::vector<T>& values) {
  digest = Mix(digest, values.size());
  for (const T& value : values) digest = Mix(digest, value);
  return digest;
}

template <typename T>
requires std::is_arithmetic_v<T> std::string TextOf(T value) {
  return absl::StrCat(value);
}

std::string TextOf(const std::string& text) {
  return absl::StrCat("\"", absl::Utf8SafeCEscape(text), "\"");
}

template <typename T>
std::string TextOf(const std::vector<T>& values) {
  if (values.empty()) return "none";
  return absl::StrJoin(values, ",", [](std::string* out, const T& value) {
    out->append(TextOf(value));
  });
}

// What one wish says, as one text: that of all prompts, or of each of the first
// ones where they differ.
std::string Summary(const std::vector<std::string>& texts) {
  constexpr size_t kShown = 8;
  if (texts.empty()) return "none";
  if (std::ranges::count(texts, texts[0]) ==
      static_cast<std::ptrdiff_t>(texts.size())) {
    return texts[0];
  }
  const size_t shown = std::min(kShown, texts.size());
  return absl::StrCat(
      absl::StrJoin(texts.begin(),
                    texts.begin() + static_cast<std::ptrdiff_t>(shown), "; "),
      shown < texts.size() ? "; ..." : "");
}

// A wish over all prompts: `get` takes it from one.
template <typename Get>
AgreedField WishOf(absl::string_view name,
                   const std::vector<PreparedPrompt>& prompts, Get get) {
  uint64_t digest = Digest({});
  std::vector<std::string> texts;
  for (const PreparedPrompt& prompt : prompts) {
    const auto& value = std::invoke(get, prompt);
    digest = Mix(digest, value);
    texts.push_back(TextOf(value));
  }
  return {name, digest, kSameJob, Summary(texts)};
}

// Their ids and tokens, in order.
AgreedField PromptsOf(const GenerateOptions& options,
                      const std::vector<PreparedPrompt>& prompts) {
  uint64_t digest = Mix(Digest({}), prompts.size());
  for (const PreparedPrompt& prompt : prompts) {
    digest = Mix(Mix(digest, prompt.id), prompt.request.prompt);
  }
  return {"--prompt or --prompts", digest, kSameJob,
          options.prompt.has_value()
              ? TextOf(*options.prompt)
              : absl::StrCat(options.prompts_file, " (", prompts.size(),
                             prompts.size() == 1 ? " prompt)" : " prompts)")};
}

std::string OrNone(const std::string& text) {
  return text.empty() ? "none" : text;
}

AgreedField ModelOf(const JobOptions& options, const Model& model) {
  return {"--model", model.fingerprint, "start every rank with the same model",
          options.model_dir};
}

std::string ActivationsText(const JobOptions& options) {
  return options.activations == ActivationDtype::kF32 ? "f32" : "bf16";
}

AgreedField FormatOf(absl::string_view name, WeightFormat format,
                     absl::string_view remedy) {
  return {name, static_cast<uint64_t>(format), remedy,
          std::string(WeightFormatName(format))};
}

}  // namespace

absl::Status AgreeOnJob(const GenerateOptions& options, const Model& model,
                        const std::vector<PreparedPrompt>& prompts,
                        Transport& transport) {
  using P = const PreparedPrompt&;
  const AgreedField fields[] = {
      // Before all that a tokenizer or the model's own defaults say.
      ModelOf(options.job, model),
      PromptsOf(options, prompts),
      WishOf("--max-tokens", prompts, [](P p) { return p.request.max_tokens; }),
      WishOf("--temperature", prompts,
             [](P p) { return p.request.sampling.temperature; }),
      WishOf("--top-k", prompts, [](P p) { return p.request.sampling.top_k; }),
      WishOf("--top-p", prompts, [](P p) { return p.request.sampling.top_p; }),
      WishOf("--min-p", prompts, [](P p) { return p.request.sampling.min_p; }),
      WishOf("--repetition-penalty", prompts,
             [](P p) { return p.request.sampling.repetition_penalty; }),
      WishOf("--presence-penalty", prompts,
             [](P p) { return p.request.sampling.presence_penalty; }),
      WishOf("--frequency-penalty", prompts,
             [](P p) { return p.request.sampling.frequency_penalty; }),
      WishOf("--seed", prompts, [](P p) { return p.request.sampling.seed; }),
      WishOf("--stop", prompts, [](P p) { return p.stops; }),
      WishOf("ids that stop (--stop-token-ids, --ignore-eos)", prompts,
             [](P p) { return p.request.stop_tokens; }),
      WishOf("--logprobs", prompts,
             [](P p) {
               const std::optional<int32_t> wish = p.request.num_logprobs;
               return wish ? std::vector{*wish} : std::vector<int32_t>();
             }),
      {"--format", options.jsonl, "give every rank the same --format",
       options.jsonl ? "jsonl" : "text"},
      {"--stats", !options.stats_file.empty(),
       "give every rank --stats, or none", OrNone(options.stats_file)}};
  return Agree(transport, fields, kStartTimeout);
}

absl::Status AgreeOnFlags(const JobOptions& options, const Model& model,
                          Transport& transport) {
  const bool exact = options.combine == CombineMode::kExact;
  const AgreedField fields[] = {
      {"job and restart", options.epoch,
       "restart all ranks of the job together", options.epoch_text},
      ModelOf(options, model),
      FormatOf("--weights", options.weights,
               "give every rank the same --weights"),
      FormatOf("--dense-weights", options.dense_weights,
               "give every rank the same --dense-weights"),
      {"--activations", static_cast<uint64_t>(options.activations),
       "give every rank the same --activations", ActivationsText(options)},
      {"--combine", exact, "give every rank the same --combine",
       exact ? "exact" : "reduced"},
      {"--history", !options.history_file.empty(),
       "give every rank --history, or none", OrNone(options.history_file)},
      {"--history-format", static_cast<uint64_t>(options.history_format),
       "give every rank the same --history-format",
       std::string(MapFormatName(options.history_format))},
      {"--history-capacity", static_cast<uint64_t>(options.history_capacity),
       "give every rank the same --history-capacity",
       absl::StrCat(options.history_capacity)}};
  return Agree(transport, fields, kStartTimeout);
}

std::string NumericsText(const JobOptions& options) {
  return absl::StrCat(std::string(WeightFormatName(options.weights)), ", ",
                      std::string(WeightFormatName(options.dense_weights)),
                      ", ", ActivationsText(options));
}

}  // namespace portolan
