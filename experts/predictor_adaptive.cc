#include "experts/predictor_adaptive.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "experts/hints.h"
#include "experts/history.h"
#include "experts/prediction_score.h"
#include "experts/sequence_context.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

// Inputs of a mixer. The look-ahead row is 0 under kTokens.
enum Input : size_t {
  kBias,
  kPopularity,
  kRecent,
  kMean,
  kSemantic,
  kToken,
  kAhead,
  kTrajectory,
  kNumInputs
};
static_assert(kNumInputs <= Mixer::kMaxInputs);

constexpr float kRecentMemory = 0.85f;  // per token, of the sequence
constexpr float kMeanPrior = 8;         // tokens that the prior counts for
constexpr float kTokenPrior = 2;        // visits that the prior counts for
constexpr float kPopularityRate = History::kPopularityRate;
constexpr float kLearningRate = 0.01f;
constexpr size_t kNeighbours = 8;  // of a semantic search
constexpr float kNeighbourSharpness = 20;
constexpr int64_t kSearchInterval = 32;  // tokens between semantic searches
// Tokens of a step that mixers learn from: evenly spread, for a long prompt
// teaches little more than a part of it.
constexpr int64_t kLearnTokens = 4;
// A trajectory search costs records * experts a layer and token, so only the
// first tokens of a step are searched for, and every few steps one is stored.
constexpr size_t kSearchTokens = 4;
constexpr int64_t kStoreInterval = 4;
constexpr size_t kNumInStep = 3;  // foresights within the step
// Steps between measured ones: a prime, for prompts come in rhythms of 8 and 16
// where batches of equal length run.
constexpr int64_t kScoreInterval = 13;

// What is measured: a source alone, or the mixture, at one foresight.
struct Measured {
  std::string_view name;
  Input input;
  Foresight foresight;
};
constexpr std::array kMeasured = {
    Measured{"popularity", kPopularity, Foresight::kTokens},
    Measured{"recent use", kRecent, Foresight::kTokens},
    Measured{"mean use", kMean, Foresight::kTokens},
    Measured{"semantic map", kSemantic, Foresight::kTokens},
    Measured{"token table", kToken, Foresight::kTokens},
    Measured{"trajectory map", kTrajectory, Foresight::kNextLayer},
    Measured{"trajectory map", kTrajectory, Foresight::kLayerAfter},
    Measured{"look-ahead", kAhead, Foresight::kNextLayer},
    Measured{"look-ahead", kAhead, Foresight::kLayerAfter},
    Measured{"mixture", kNumInputs, Foresight::kNextLayer},
    Measured{"mixture", kNumInputs, Foresight::kLayerAfter},
    Measured{"mixture", kNumInputs, Foresight::kTokens},
};

// A sequence that lives here.
struct SequenceState {
  explicit SequenceState(size_t cells, int32_t hidden)
      : recent(cells),
        mean(cells),
        semantic(cells),
        used(cells, 0.0f),
        context(hidden) {}

  std::vector<float> recent;    // [num_layers, num_experts], probabilities
  std::vector<float> mean;      // likewise
  std::vector<float> semantic;  // likewise, stretched
  std::vector<float> used;      // sum of choices
  SequenceContext context;
  int64_t tokens = 0;
  int64_t next_search = 0;
  int32_t last_token = -1;
};

// The search for the past iteration that goes as a token of this step does.
struct Trajectory {
  explicit Trajectory(const ExpertMapStore& store)
      : search(store),
        map(static_cast<size_t>(store.shape().num_layers) *
            static_cast<size_t>(store.shape().num_experts)) {}

  TrajectorySearch search;
  std::optional<ExpertMapStore::Match> match = std::nullopt;
  std::vector<float> map;  // [num_layers, num_experts], rows sum to 1
};

struct Slice {
  SequenceState* state = nullptr;
  int64_t sequence = 0;
  int64_t first_row = 0;
  int64_t num_rows = 0;
};

class AdaptivePredictor final : public Predictor {
 public:
  AdaptivePredictor(const PredictorShape& shape, History& history);

  std::span<const int32_t> distances() const override { return distances_; }
  int32_t lookahead() const override { return 2; }
  bool foretells_next_step() const override { return true; }
  void BeginStep(const StepTokens& tokens) override;
  void Observe(const LayerObservation& observation) override;
  void Predict(int32_t layer, int32_t distance,
               std::span<Fp16> scores) override;
  void EndStep() override;
  void EndSequence(int64_t sequence) override;
  std::vector<PredictionMetrics> metrics() const override;

 private:
  // What the mixers said of a token that they learn from, by place: a layer,
  // or LessonPlace() within the step.
  struct Lesson {
    int64_t row = -1;                       // of the step; -1: none
    int64_t sequence = -1;                  // kNextStep only
    std::vector<float> inputs = {};         // [places, kNumInputs, experts]
    std::vector<float> probabilities = {};  // [places, experts]
  };

  size_t Cell(int32_t layer) const {
    return static_cast<size_t>(layer) * experts_;
  }
  size_t LessonPlace(Foresight foresight, int32_t layer) const {
    return static_cast<size_t>(foresight) * layers_ +
           static_cast<size_t>(layer);
  }
  Mixer& MixerOf(Foresight foresight, int32_t layer) {
    return history_.mixers()[LessonPlace(foresight, layer)];
  }
  MatrixView<const float> Inputs() const {
    return {inputs_, static_cast<int64_t>(kNumInputs),
            static_cast<int64_t>(experts_)};
  }
  std::span<float> InputRow(Input input) {
    return std::span(inputs_).subspan(input * experts_, experts_);
  }

  void AddSlices(const StepTokens& tokens);
  SequenceState& StateOf(int64_t sequence);
  void SearchSemantic(SequenceState& state);
  void RewardTrajectory(const Trajectory& trajectory);
  void RewardNeighbours(const SequenceState& state);
  void ChooseLessons();
  // Foretells `layer` for all tokens; `ahead`: the gate's look-ahead, or empty.
  void Foretell(Foresight foresight, int32_t layer,
                MatrixView<const float> ahead);
  // Foretells `layer` for the token after the last one of each sequence.
  void ForetellNextStep(int32_t layer);
  void FillSequenceInputs(const SequenceState& state, int32_t layer);
  // What `table` knows of a token.
  void FillToken(const TokenTable& table, int32_t token,
                 const SequenceState& state, int32_t layer);
  void FillAhead(std::span<const float> probabilities);
  void KeepLesson(size_t place, Lesson& lesson);
  void LearnLessons(const LayerObservation& observation);
  void Learn(const Lesson& lesson, size_t place, Mixer& mixer);
  bool measuring() const { return steps_ % kScoreInterval == 0; }
  float SourceProbability(Input input, float value) const;
  // Adds what each source alone says of one token.
  void AddMeasured(Foresight foresight, int32_t layer);
  void CountScores(const LayerObservation& observation);
  void LearnToken(SequenceState& state, int64_t row);
  void BeginTrajectories(const StepTokens& tokens);
  // Says to the matched maps how well they foretold the layer.
  void RewardTrajectories(const LayerObservation& observation);
  void ExtendTrajectories(const LayerObservation& observation);
  // The matched map's view of a token, if it was searched for.
  void FillTrajectory(int64_t row, int32_t layer);

  const PredictorShape shape_;
  const size_t layers_;
  const size_t experts_;
  const std::array<int32_t, 3> distances_;
  History& history_;
  absl::flat_hash_map<int64_t, std::unique_ptr<SequenceState>> sequences_;

  // The step in work.
  std::vector<Slice> slices_;
  std::vector<int32_t> token_ids_;  // [rows]
  std::vector<int32_t> choices_;    // [rows, num_layers, top_k]
  std::vector<float> expected_;     // [2 * num_layers, num_experts]
  std::vector<Lesson> lessons_;     // the first num_lessons_ are in use
  size_t num_lessons_ = 0;
  std::vector<Trajectory> trajectories_;  // of the first tokens
  std::vector<float> first_embedding_;
  Lesson pending_;  // about the next step
  Lesson due_;      // about this one, from the last
  int64_t steps_ = 0;

  // Scratch.
  std::vector<float> inputs_;         // [kNumInputs, num_experts]
  std::vector<float> probabilities_;  // [num_experts]
  std::vector<float> used_;           // [num_experts]
  std::vector<float> map_;            // [num_layers, num_experts]
  std::vector<ExpertMapStore::Match> matches_;
  std::vector<PredictionScore> scores_;  // as kMeasured
  std::vector<float> measured_;          // [kMeasured, num_layers, num_experts]
  std::vector<int32_t> tokens_;          // [num_experts]
};

AdaptivePredictor::AdaptivePredictor(const PredictorShape& shape,
                                     History& history)
    : shape_(shape),
      layers_(static_cast<size_t>(shape.num_layers)),
      experts_(static_cast<size_t>(shape.num_experts)),
      distances_{1, 2, std::max(3, 2 * shape.num_layers)},
      history_(history),
      expected_(2 * layers_ * experts_),
      lessons_(kLearnTokens),
      trajectories_(kSearchTokens, Trajectory(history.iterations())),
      first_embedding_(static_cast<size_t>(shape.hidden)),
      inputs_(kNumInputs * experts_),
      probabilities_(experts_),
      used_(experts_),
      map_(layers_ * experts_),
      measured_(kMeasured.size() * layers_ * experts_),
      tokens_(experts_) {
  const auto make_room = [this](Lesson& lesson, size_t places) {
    lesson.inputs.resize(places * kNumInputs * experts_);
    lesson.probabilities.resize(places * experts_);
  };
  for (Lesson& lesson : lessons_) make_room(lesson, kNumInStep * layers_);
  for (const Measured& measured : kMeasured) {
    const int32_t distance = static_cast<int32_t>(measured.foresight);
    scores_.emplace_back(measured.name,
                         distance == 0 ? shape.num_layers : distance);
  }
  make_room(pending_, layers_);
  make_room(due_, layers_);
}

void AdaptivePredictor::BeginStep(const StepTokens& tokens) {
  AddSlices(tokens);
  ChooseLessons();
  BeginTrajectories(tokens);
  if (measuring()) std::ranges::fill(measured_, 0.0f);
  choices_.resize(token_ids_.size() * layers_ *
                  static_cast<size_t>(shape_.top_k));
  for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
    Foretell(Foresight::kTokens, layer, {});
    ForetellNextStep(layer);
  }
}

void AdaptivePredictor::AddSlices(const StepTokens& tokens) {
  slices_.clear();
  token_ids_.clear();
  for (const SequenceSlice& slice : tokens.slices) {
    SequenceState& state = StateOf(slice.sequence);
    slices_.push_back({.state = &state,
                       .sequence = slice.sequence,
                       .first_row = std::ssize(token_ids_),
                       .num_rows = std::ssize(slice.token_ids)});
    for (const int32_t id : slice.token_ids) {
      state.context.Append(tokens.embeddings.Row(std::ssize(token_ids_)));
      token_ids_.push_back(id);
    }
    if (state.tokens + std::ssize(slice.token_ids) >= state.next_search) {
      SearchSemantic(state);
      state.next_search =
          state.tokens + std::ssize(slice.token_ids) + kSearchInterval;
    }
  }
}

SequenceState& AdaptivePredictor::StateOf(int64_t sequence) {
  std::unique_ptr<SequenceState>& state = sequences_[sequence];
  if (state == nullptr) {
    state = std::make_unique<SequenceState>(layers_ * experts_, shape_.hidden);
    std::ranges::copy(history_.popularity(), state->semantic.begin());
    state->recent = state->semantic;
    state->mean = state->semantic;
  }
  return *state;
}

void AdaptivePredictor::SearchSemantic(SequenceState& state) {
  history_.sequences().NearestEmbeddings(state.context.vector(), kNeighbours,
                                         matches_);
  if (matches_.empty()) return;
  std::ranges::fill(state.semantic, 0.0f);
  float sum = 0;
  for (const ExpertMapStore::Match& match : matches_) {
    sum += std::exp(kNeighbourSharpness *
                    (match.similarity - matches_.front().similarity));
  }
  for (const ExpertMapStore::Match& match : matches_) {
    const float weight =
        std::exp(kNeighbourSharpness *
                 (match.similarity - matches_.front().similarity)) /
        sum;
    for (int32_t layer = 0; layer < shape_.num_layers; ++layer) {
      history_.sequences().CopyRow(match.record, layer, used_);
      for (size_t e = 0; e < experts_; ++e) {
        state.semantic[Cell(layer) + e] += weight * used_[e];
      }
    }
  }
  if (state.tokens > 0) return;
  // The best guess of what the sequence itself will do.
  state.recent = state.semantic;
  state.mean = state.semantic;
}

void AdaptivePredictor::ChooseLessons() {
  const int64_t rows = std::ssize(token_ids_);
  num_lessons_ = static_cast<size_t>(std::min(rows, kLearnTokens));
  for (size_t i = 0; i < num_lessons_; ++i) {
    lessons_[i].row =
        static_cast<int64_t>(i) * rows / static_cast<int64_t>(num_lessons_);
  }
  std::swap(pending_, due_);
  due_.row = -1;
  for (const Slice& slice : slices_) {
    if (slice.sequence == due_.sequence) due_.row = slice.first_row;
  }
  pending_.sequence =
      slices_[static_cast<size_t>(steps_) % slices_.size()].sequence;
}

void AdaptivePredictor::FillSequenceInputs(const SequenceState& state,
                                           int32_t layer) {
  const auto fill = [&](Input input, const float* probabilities) {
    const std::span<float> row = InputRow(input);
    for (size_t e = 0; e < experts_; ++e) row[e] = Stretch(probabilities[e]);
  };
  const size_t cell = Cell(layer);
  std::ranges::fill(InputRow(kBias), 1.0f);
  fill(kPopularity, history_.popularity().data() + cell);
  fill(kRecent, state.recent.data() + cell);
  fill(kMean, state.mean.data() + cell);
  fill(kSemantic, state.semantic.data() + cell);
  std::ranges::fill(InputRow(kAhead), 0.0f);
  std::ranges::fill(InputRow(kTrajectory), 0.0f);
}

void AdaptivePredictor::FillToken(const TokenTable& table, int32_t token,
                                  const SequenceState& state, int32_t layer) {
  const TokenTable::Entry entry = table.Find(token, layer);
  const float* const mean = state.mean.data() + Cell(layer);
  const std::span<float> input = InputRow(kToken);
  const float scale = 1.0f / (static_cast<float>(entry.visits) + kTokenPrior);
  for (size_t e = 0; e < experts_; ++e) {
    const float count =
        entry.counts.empty() ? 0.0f : static_cast<float>(entry.counts[e]);
    input[e] = Stretch((count + kTokenPrior * mean[e]) * scale);
  }
}

void AdaptivePredictor::FillAhead(std::span<const float> probabilities) {
  float sum = 0;
  for (const float p : probabilities) sum += p;
  // 0 where the gate is as undecided as can be.
  const float scale = sum > 0 ? static_cast<float>(experts_) / sum : 0.0f;
  const std::span<float> input = InputRow(kAhead);
  for (size_t e = 0; e < experts_; ++e) {
    input[e] = FastLog(probabilities[e] * scale + 0.003f);
  }
}

void AdaptivePredictor::BeginTrajectories(const StepTokens& tokens) {
  for (Trajectory& trajectory : trajectories_) {
    trajectory.search.Begin();
    trajectory.match.reset();
  }
  std::ranges::copy(tokens.embeddings.Row(0), first_embedding_.begin());
}

void AdaptivePredictor::RewardTrajectories(
    const LayerObservation& observation) {
  const auto top_k = static_cast<size_t>(shape_.top_k);
  const size_t searched = std::min(trajectories_.size(), token_ids_.size());
  for (size_t i = 0; i < searched; ++i) {
    const auto& match = trajectories_[i].match;
    if (!match) continue;
    history_.iterations().CopyRow(match->record, observation.layer, used_);
    // The share of its map that lies on what was chosen.
    float chosen = 0;
    for (const int32_t expert : observation.experts.subspan(i * top_k, top_k)) {
      chosen += used_[static_cast<size_t>(expert)];
    }
    history_.iterations().Reward(match->record, std::min(chosen, 1.0f));
  }
}

void AdaptivePredictor::ExtendTrajectories(
    const LayerObservation& observation) {
  const size_t searched = std::min(trajectories_.size(), token_ids_.size());
  for (size_t i = 0; i < searched; ++i) {
    const std::span<const float> row =
        observation.probabilities.Row(static_cast<int64_t>(i));
    float sum = 0;
    for (const float p : row) sum += p;
    const float scale = sum > 0 ? 1 / sum : 0.0f;
    Trajectory& trajectory = trajectories_[i];
    const auto kept =
        std::span(trajectory.map).subspan(Cell(observation.layer), experts_);
    for (size_t e = 0; e < experts_; ++e) kept[e] = row[e] * scale;
    trajectory.search.Extend(observation.layer, kept);
    trajectory.match = trajectory.search.Best();
  }
}

void AdaptivePredictor::FillTrajectory(int64_t row, int32_t layer) {
  const std::span<float> input = InputRow(kTrajectory);
  std::ranges::fill(input, 0.0f);
  if (row >= std::ssize(trajectories_)) return;
  const auto& match = trajectories_[static_cast<size_t>(row)].match;
  if (!match) return;
  history_.iterations().CopyRow(match->record, layer, input);
  for (float& value : input) {
    value = Stretch(value * static_cast<float>(shape_.top_k));
  }
}

void AdaptivePredictor::KeepLesson(size_t place, Lesson& lesson) {
  const auto cell = static_cast<std::ptrdiff_t>(place * experts_);
  std::ranges::copy(
      inputs_,
      lesson.inputs.begin() + cell * static_cast<std::ptrdiff_t>(kNumInputs));
  std::ranges::copy(probabilities_, lesson.probabilities.begin() + cell);
}

void AdaptivePredictor::Foretell(Foresight foresight, int32_t layer,
                                 MatrixView<const float> ahead) {
  const auto expected = std::span(expected_).subspan(Cell(layer), experts_);
  std::ranges::fill(expected, 0.0f);
  const Mixer& mixer = MixerOf(foresight, layer);
  for (const Slice& slice : slices_) {
    FillSequenceInputs(*slice.state, layer);
    for (int64_t i = 0; i < slice.num_rows; ++i) {
      const int64_t row = slice.first_row + i;
      FillToken(history_.tokens(), token_ids_[static_cast<size_t>(row)],
                *slice.state, layer);
      if (ahead.rows() > 0) {
        FillAhead(ahead.Row(row));
        FillTrajectory(row, layer);
      }
      mixer.Mix(Inputs(), probabilities_);
      for (size_t e = 0; e < experts_; ++e)
        expected[e] += HintOf(probabilities_[e]);
      if (measuring()) AddMeasured(foresight, layer);
      for (size_t lesson = 0; lesson < num_lessons_; ++lesson) {
        if (lessons_[lesson].row != row) continue;
        KeepLesson(LessonPlace(foresight, layer), lessons_[lesson]);
      }
    }
  }
}

void AdaptivePredictor::ForetellNextStep(int32_t layer) {
  const auto expected =
      std::span(expected_).subspan(Cell(shape_.num_layers + layer), experts_);
  std::ranges::fill(expected, 0.0f);
  const Mixer& mixer = MixerOf(Foresight::kNextStep, layer);
  for (const Slice& slice : slices_) {
    FillSequenceInputs(*slice.state, layer);
    const int64_t last = slice.first_row + slice.num_rows - 1;
    FillToken(history_.followers(), token_ids_[static_cast<size_t>(last)],
              *slice.state, layer);
    mixer.Mix(Inputs(), probabilities_);
    for (size_t e = 0; e < experts_; ++e)
      expected[e] += HintOf(probabilities_[e]);
    if (slice.sequence == pending_.sequence) {
      KeepLesson(static_cast<size_t>(layer), pending_);
    }
  }
}

void AdaptivePredictor::Observe(const LayerObservation& observation) {
  const int32_t layer = observation.layer;
  const auto top_k = static_cast<size_t>(shape_.top_k);
  for (size_t row = 0; row < token_ids_.size(); ++row) {
    std::copy_n(
        observation.experts.begin() + static_cast<std::ptrdiff_t>(row * top_k),
        top_k,
        choices_.begin() +
            static_cast<std::ptrdiff_t>(
                (row * layers_ + static_cast<size_t>(layer)) * top_k));
  }
  if (measuring()) CountScores(observation);
  LearnLessons(observation);
  RewardTrajectories(observation);
  ExtendTrajectories(observation);
  if (observation.ahead2.rows() > 0) {
    Foretell(Foresight::kLayerAfter, layer + 2, observation.ahead2);
  }
  if (observation.ahead1.rows() > 0) {
    Foretell(Foresight::kNextLayer, layer + 1, observation.ahead1);
  }
}

void AdaptivePredictor::LearnLessons(const LayerObservation& observation) {
  const int32_t layer = observation.layer;
  const auto mark_used = [&](int64_t row) {
    const auto top_k = static_cast<size_t>(shape_.top_k);
    std::ranges::fill(used_, 0.0f);
    for (const int32_t expert :
         observation.experts.subspan(static_cast<size_t>(row) * top_k, top_k)) {
      used_[static_cast<size_t>(expert)] = 1.0f;
    }
  };
  for (size_t i = 0; i < num_lessons_; ++i) {
    mark_used(lessons_[i].row);
    for (int32_t f = 0; f < static_cast<int32_t>(kNumInStep); ++f) {
      if (layer < f) continue;  // nobody looked ahead so far
      const auto foresight = static_cast<Foresight>(f);
      Learn(lessons_[i], LessonPlace(foresight, layer),
            MixerOf(foresight, layer));
    }
  }
  if (due_.row < 0) return;
  mark_used(due_.row);
  Learn(due_, static_cast<size_t>(layer), MixerOf(Foresight::kNextStep, layer));
}

void AdaptivePredictor::Learn(const Lesson& lesson, size_t place,
                              Mixer& mixer) {
  const size_t cell = place * experts_;
  mixer.Learn(
      {std::span(lesson.inputs)
           .subspan(cell * kNumInputs, kNumInputs * experts_),
       static_cast<int64_t>(kNumInputs), static_cast<int64_t>(experts_)},
      std::span(lesson.probabilities).subspan(cell, experts_), used_,
      kLearningRate);
}

void AdaptivePredictor::AddMeasured(Foresight foresight, int32_t layer) {
  for (size_t i = 0; i < kMeasured.size(); ++i) {
    if (kMeasured[i].foresight != foresight) continue;
    const Input input = kMeasured[i].input;
    const auto sum = std::span(measured_).subspan(
        (i * layers_) * experts_ + Cell(layer), experts_);
    for (size_t e = 0; e < experts_; ++e) {
      sum[e] += input == kNumInputs
                    ? probabilities_[e]
                    : SourceProbability(input, InputRow(input)[e]);
    }
  }
}

float AdaptivePredictor::SourceProbability(Input input, float value) const {
  if (input != kAhead) return Squash(value);
  // Of a gate's probability: as if the top-k were drawn by it.
  return std::min(1.0f, FastExp(value) * static_cast<float>(shape_.top_k) /
                            static_cast<float>(experts_));
}

void AdaptivePredictor::CountScores(const LayerObservation& observation) {
  const int32_t layer = observation.layer;
  std::ranges::fill(tokens_, 0);
  for (const int32_t expert : observation.experts) {
    ++tokens_[static_cast<size_t>(expert)];
  }
  for (size_t i = 0; i < kMeasured.size(); ++i) {
    if (layer < static_cast<int32_t>(kMeasured[i].foresight)) continue;
    scores_[i].Count(std::span(measured_).subspan(
                         i * layers_ * experts_ + Cell(layer), experts_),
                     tokens_, std::ssize(token_ids_));
  }
}

void AdaptivePredictor::Predict(int32_t layer, int32_t /*distance*/,
                                std::span<Fp16> scores) {
  if (slices_.empty()) {
    std::ranges::fill(scores, Fp16{});
    return;
  }
  const auto expected =
      std::span<const float>(expected_).subspan(Cell(layer), experts_);
  std::ranges::transform(expected, scores.begin(), ToFp16);
}

void AdaptivePredictor::EndStep() {
  if (steps_ % kStoreInterval == 0 && !slices_.empty()) {
    RewardTrajectory(trajectories_.front());
    history_.iterations().Add(
        first_embedding_,
        {trajectories_.front().map, shape_.num_layers, shape_.num_experts});
  }
  for (const Slice& slice : slices_) {
    for (int64_t i = 0; i < slice.num_rows; ++i) {
      LearnToken(*slice.state, slice.first_row + i);
    }
  }
  slices_.clear();
  token_ids_.clear();
  ++steps_;
}

void AdaptivePredictor::LearnToken(SequenceState& state, int64_t row) {
  const auto top_k = static_cast<size_t>(shape_.top_k);
  const std::span<const int32_t> choices =
      std::span<const int32_t>(choices_).subspan(
          static_cast<size_t>(row) * layers_ * top_k, layers_ * top_k);
  history_.tokens().Learn(token_ids_[static_cast<size_t>(row)], choices);
  history_.followers().Learn(state.last_token, choices);
  state.last_token = token_ids_[static_cast<size_t>(row)];
  const float mean_rate =
      1.0f / (static_cast<float>(++state.tokens) + kMeanPrior);
  const std::span<float> popularity = history_.popularity();
  for (size_t i = 0; i < popularity.size(); ++i) {
    state.recent[i] *= kRecentMemory;
    state.mean[i] *= 1 - mean_rate;
    popularity[i] *= 1 - kPopularityRate;
  }
  for (size_t i = 0; i < choices.size(); ++i) {
    const size_t cell = i / top_k * experts_ + static_cast<size_t>(choices[i]);
    state.recent[cell] += 1 - kRecentMemory;
    state.mean[cell] += mean_rate;
    state.used[cell] += 1;
    popularity[cell] += kPopularityRate;
  }
}

void AdaptivePredictor::RewardTrajectory(const Trajectory& trajectory) {
  if (!trajectory.match) return;
  ExpertMapStore& store = history_.iterations();
  const int32_t record = trajectory.match->record;
  store.Reward(record, store.ForetoldShare(record,
                                           {trajectory.map, shape_.num_layers,
                                            shape_.num_experts},
                                           shape_.top_k));
}

// The maps that the sequence would find at its end: those that it found on its
// way may have given their places to others.
void AdaptivePredictor::RewardNeighbours(const SequenceState& state) {
  ExpertMapStore& store = history_.sequences();
  store.NearestEmbeddings(state.context.vector(), kNeighbours, matches_);
  for (const ExpertMapStore::Match& match : matches_) {
    store.Reward(match.record, store.ForetoldShare(match.record,
                                                   {map_, shape_.num_layers,
                                                    shape_.num_experts},
                                                   shape_.top_k));
  }
}

void AdaptivePredictor::EndSequence(int64_t sequence) {
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) return;
  const SequenceState& state = *found->second;
  if (state.tokens > 0) {
    const float scale = 1.0f / static_cast<float>(state.tokens);
    std::ranges::transform(state.used, map_.begin(),
                           [scale](float used) { return used * scale; });
    RewardNeighbours(state);
    history_.sequences().Add(state.context.vector(),
                             {map_, shape_.num_layers, shape_.num_experts});
  }
  sequences_.erase(found);
}

std::vector<PredictionMetrics> AdaptivePredictor::metrics() const {
  std::vector<PredictionMetrics> metrics;
  for (const PredictionScore& score : scores_) {
    metrics.push_back(score.metrics());
  }
  return metrics;
}

}  // namespace

std::vector<Mixer> InitialMixers(int32_t num_layers) {
  std::vector<Mixer> mixers(kNumForesights * static_cast<size_t>(num_layers),
                            Mixer(kNumInputs));
  for (size_t i = 0; i < mixers.size(); ++i) {
    const std::span<float> weights = mixers[i].weights();
    weights[kRecent] = 0.15f;
    weights[kMean] = 0.15f;
    weights[kSemantic] = 0.2f;
    weights[kToken] = 0.5f;
    weights[kAhead] = i >= static_cast<size_t>(num_layers) ? 0.5f : 0.0f;
  }
  return mixers;
}

std::unique_ptr<Predictor> MakeAdaptivePredictor(const PredictorShape& shape,
                                                 History& history) {
  return std::make_unique<AdaptivePredictor>(shape, history);
}

}  // namespace portolan
