#include "launcher/bench_lock_step.h"

#include <sys/resource.h>

#include <algorithm>
#include <bit>
#include <iterator>

#include "runtime/base/check.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/steady_now.h"
#include "runtime/model/philox.h"

namespace portolan {
namespace {

// Bytes that the disk gave to this process so far: page faults and read-ahead
// as well as direct reads; in whole blocks of 512.
int64_t DiskBytesRead() {
  rusage usage;
  return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_inblock * int64_t{512}
                                             : 0;
}

std::vector<uint32_t> BitsOf(std::span<const float> values) {
  std::vector<uint32_t> bits(values.size());
  std::ranges::transform(values, bits.begin(), std::bit_cast<uint32_t, float>);
  return bits;
}

}  // namespace

LockStep::LockStep(const BenchLoad& load, const Model& model, RankRuntime& rank,
                   int rank_index)
    : load_(load),
      vocab_(static_cast<uint64_t>(model.config.vocab_size)),
      rank_(rank),
      rank_index_(static_cast<uint64_t>(rank_index)),
      sequences_(static_cast<size_t>(load.batch)) {}

absl::StatusOr<BenchRound> LockStep::Run() {
  if (sequences_[0].tokens.empty() || load_.new_tokens) DrawTokens();
  BenchRound round;
  PORTOLAN_ASSIGN_OR_RETURN(round.prefill, Measure(load_.prompt_tokens, [this] {
                              return Prefill();
                            }));
  PORTOLAN_ASSIGN_OR_RETURN(
      round.decode, Measure(load_.generate, [this] { return Decode(); }));
  CheckLogits();
  EndSequences();
  return round;
}

absl::Status LockStep::Verify() {
  Sequence& sequence = sequences_[0];
  sequence.id = next_id_++;
  const auto length = std::ssize(sequence.tokens);
  while (sequence.computed < length) {
    step_.clear();
    Schedule(sequence,
             std::min(load_.tokens_per_step, length - sequence.computed));
    PORTOLAN_RETURN_IF_ERROR(RunStep());
  }
  const std::vector<uint32_t> bits = BitsOf(logits_.Row(0));
  CountWrong(bits, std::span(last_bits_).first(bits.size()));
  EndSequences();
  return absl::OkStatus();
}

void LockStep::DrawTokens() {
  for (Sequence& sequence : sequences_) {
    sequence.id = next_id_++;
    sequence.tokens.resize(
        static_cast<size_t>(load_.prompt_tokens + load_.generate));
    for (int32_t& token : sequence.tokens) {
      token = static_cast<int32_t>(
          Philox4x32(rank_index_,
                     {static_cast<uint32_t>(num_drawn_++), 0, 0, 0})[0] %
          vocab_);
    }
  }
}

void LockStep::EndSequences() {
  for (Sequence& sequence : sequences_) {
    if (sequence.computed == 0) continue;
    rank_.kv().Release(sequence.pages);
    sequence.computed = 0;
    if (rank_.observer() != nullptr) {
      rank_.observer()->OnSequenceEnd(sequence.id);
    }
  }
}

absl::StatusOr<PhaseFigures> LockStep::Measure(
    int64_t tokens, absl::FunctionRef<absl::Status()> phase) {
  PhaseFigures figures;
  const ZoneTotals before = Zones();
  const int64_t read_before = DiskBytesRead();
  num_steps_ = 0;
  const absl::Time start = SteadyNow();
  PORTOLAN_RETURN_IF_ERROR(phase());
  figures.tokens_per_s = static_cast<double>(sequences_.size()) *
                         static_cast<double>(tokens) /
                         absl::ToDoubleSeconds(SteadyNow() - start);
  figures.disk_bytes_per_token =
      static_cast<double>(DiskBytesRead() - read_before) /
      (static_cast<double>(sequences_.size()) *
       static_cast<double>(std::max<int64_t>(tokens, 1)));
  figures.steps = num_steps_;
  figures.zones = Difference(Zones(), before);
  return figures;
}

ZoneTotals LockStep::Zones() const {
  return rank_.profile() == nullptr ? ZoneTotals{} : rank_.profile()->Totals();
}

absl::Status LockStep::Prefill() {
  size_t at = 0;
  while (at < sequences_.size() && load_.prompt_tokens > 0) {
    step_.clear();
    int64_t room = load_.tokens_per_step;
    while (at < sequences_.size() && room > 0) {
      Sequence& sequence = sequences_[at];
      const int64_t count =
          std::min(room, load_.prompt_tokens - sequence.computed);
      Schedule(sequence, count);
      room -= count;
      if (sequence.computed == load_.prompt_tokens) ++at;
    }
    PORTOLAN_RETURN_IF_ERROR(RunStep());
  }
  return absl::OkStatus();
}

absl::Status LockStep::Decode() {
  for (int64_t i = 0; i < load_.generate; ++i) {
    step_.clear();
    for (Sequence& sequence : sequences_) Schedule(sequence, 1);
    PORTOLAN_RETURN_IF_ERROR(RunStep());
  }
  return absl::OkStatus();
}

void LockStep::Schedule(Sequence& sequence, int64_t count) {
  const int64_t end = sequence.computed + count;
  PORTOLAN_CHECK(rank_.kv().Grow(sequence.pages, end));
  step_.push_back(
      {.id = sequence.id,
       .tokens = std::span<const int32_t>(sequence.tokens)
                     .subspan(static_cast<size_t>(sequence.computed),
                              static_cast<size_t>(count)),
       .first_position = sequence.computed,
       .pages = sequence.pages,
       .logits =
           end >= load_.prompt_tokens ? LogitRows::kLast : LogitRows::kNone});
  sequence.computed = end;
}

absl::Status LockStep::RunStep() {
  const ProfileScope zone(rank_.profile(), Zone::kStep);
  ++num_steps_;
  {
    const ProfileScope plan(rank_.profile(), Zone::kPlan);
    rank_.forward().Begin(step_);
  }
  StepRecord record;
  record.has_work = true;
  record.rows_planned = rank_.forward().num_tokens();
  ForwardObserver* const observer = rank_.observer();
  std::span<const Fp16> hints;
  if (observer != nullptr) hints = observer->step_hints();
  PORTOLAN_RETURN_IF_ERROR(rank_.exchange().BeginStep(record, hints).status());
  PORTOLAN_ASSIGN_OR_RETURN(logits_, rank_.forward().Run(record.rows_planned));
  if (observer != nullptr) observer->OnStepEnd();
  return absl::OkStatus();
}

void LockStep::CountWrong(std::span<const uint32_t> bits,
                          std::span<const uint32_t> expected) {
  PORTOLAN_CHECK(bits.size() == expected.size());
  for (size_t i = 0; i < bits.size(); ++i) {
    num_wrong_ += bits[i] != expected[i];
  }
}

void LockStep::CheckLogits() {
  last_bits_.clear();
  for (int64_t row = 0; row < logits_.rows(); ++row) {
    std::ranges::copy(BitsOf(logits_.Row(row)), std::back_inserter(last_bits_));
  }
  if (load_.new_tokens) return;
  if (first_bits_.empty()) first_bits_ = last_bits_;
  CountWrong(last_bits_, first_bits_);
}

}  // namespace portolan
