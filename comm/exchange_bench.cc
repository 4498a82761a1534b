#include "comm/exchange_bench.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <memory>
#include <numeric>
#include <span>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "comm/gather.h"
#include "comm/token_exchange.h"
#include "runtime/base/bf16.h"
#include "runtime/base/status_macros.h"

namespace portolan {
namespace {

// What each rank tells the others after its run.
struct Totals {
  int64_t rows_bytes = 0;  // S of this rank
  int64_t selections = 0;  // out
  int64_t rows = 0;        // out, one per (token, rank)
  int64_t selections_in = 0;
  int64_t bytes_sent = 0;  // over all timed iterations
  int64_t messages_sent = 0;
  int64_t wrong = 0;
  int64_t tokens = 0;
};

double Seconds(std::chrono::steady_clock::duration time) {
  return std::chrono::duration<double>(time).count();
}

// The made-up expert scales a row by a factor that f32 holds exactly.
float Factor(int32_t expert) { return 1.0f + static_cast<float>(expert) / 64; }

class Bench {
 public:
  Bench(Transport& transport, const ExchangeBenchConfig& config)
      : transport_(transport), config_(config) {}

  absl::Status Prepare();
  absl::Status Verify();
  absl::Status Measure();
  absl::StatusOr<ExchangeBenchResult> Gather();

 private:
  enum class Work { kNone, kExpert };

  int rank() const { return ToIndex(transport_.rank()); }
  int world() const { return transport_.world_size(); }
  absl::Status RunOnce(Work work);
  void Reference(int64_t token, std::span<float> want) const;
  template <typename T>
  absl::StatusOr<std::vector<T>> AllGather(std::span<const T> mine);
  ExchangeBenchResult Summarise(std::span<const Totals> totals,
                                std::span<const double> times) const;

  Transport& transport_;
  const ExchangeBenchConfig config_;
  std::vector<Rank> owner_;
  MadeRouting routing_;
  std::vector<Bf16> rows_;
  std::vector<float> out_;
  std::unique_ptr<TokenExchange> exchange_;
  std::vector<double> times_;  // [iterations] seconds
  Totals totals_;
};

absl::Status Bench::Prepare() {
  for (int32_t expert = 0; expert < config_.num_experts; ++expert) {
    owner_.push_back(Rank{
        static_cast<int32_t>(int64_t{expert} * world() / config_.num_experts)});
  }
  routing_ = MakeRouting({.pattern = config_.pattern,
                          .zipf_s = config_.zipf_s,
                          .num_tokens = config_.tokens_per_rank,
                          .top_k = config_.top_k,
                          .seed = config_.seed},
                         owner_, world(), transport_.rank());
  const auto values = static_cast<size_t>(routing_.num_tokens * config_.hidden);
  rows_.resize(values);
  out_.resize(values);
  for (size_t i = 0; i < values; ++i) {
    const auto noise = static_cast<uint32_t>(i * 2654435761u) >> 20;
    rows_[i] = ToBf16(static_cast<float>(noise) / 1024 - 2 +
                      static_cast<float>(rank()));
  }
  ExchangeOptions options;
  options.num_layers = 1;
  options.num_experts = config_.num_experts;
  options.top_k = config_.top_k;
  options.hidden = config_.hidden;
  options.row_bytes = config_.hidden * int64_t{sizeof(Bf16)};
  options.combine = config_.combine;
  options.buffer_bytes = config_.buffer_bytes;
  PORTOLAN_ASSIGN_OR_RETURN(
      exchange_, TokenExchange::Create(transport_, options, {owner_}));
  return absl::OkStatus();
}

absl::Status Bench::RunOnce(Work work) {
  const auto compute = [&](const ReceivedRows& received,
                           MatrixView<float> results) {
    if (work == Work::kNone) return absl::OkStatus();
    for (size_t i = 0; i < received.experts.size(); ++i) {
      const auto* row = reinterpret_cast<const Bf16*>(
          received.rows.data + received.row_of[i] * received.rows.stride_bytes);
      const float factor = Factor(received.experts[i]);
      std::transform(row, row + config_.hidden,
                     results.Row(static_cast<int64_t>(i)).begin(),
                     [&](Bf16 value) { return ToFloat(value) * factor; });
    }
    return absl::OkStatus();
  };
  return exchange_->Run(
      0, routing_.View(),
      {reinterpret_cast<const std::byte*>(rows_.data()),
       config_.hidden * int64_t{sizeof(Bf16)}},
      {}, MatrixView<float>(out_, routing_.num_tokens, config_.hidden),
      compute);
}

// In the order of the combine mode: in kReduced rank by rank.
void Bench::Reference(int64_t token, std::span<float> want) const {
  const auto hidden = static_cast<size_t>(config_.hidden);
  const auto top_k = static_cast<size_t>(config_.top_k);
  const bool by_rank = config_.combine == CombineMode::kReduced && world() > 1;
  const size_t begin = static_cast<size_t>(token) * top_k;
  for (size_t i = 0; i < hidden; ++i) {
    const float value = ToFloat(rows_[static_cast<size_t>(token) * hidden + i]);
    float total = 0;
    for (int part = 0; part < (by_rank ? world() : 1); ++part) {
      float sum = 0;
      bool first = true;
      for (size_t s = begin; s < begin + top_k; ++s) {
        const auto expert = static_cast<size_t>(routing_.experts[s]);
        if (by_rank && ToIndex(owner_[expert]) != part) continue;
        const float term =
            routing_.weights[s] * (value * Factor(routing_.experts[s]));
        sum = first ? term : sum + term;
        first = false;
      }
      total = by_rank ? total + sum : sum;
    }
    want[i] = total;
  }
}

absl::Status Bench::Verify() {
  std::fill(out_.begin(), out_.end(), -1.0f);
  PORTOLAN_RETURN_IF_ERROR(exchange_->BeginStep({}).status());
  PORTOLAN_RETURN_IF_ERROR(RunOnce(Work::kExpert));
  const auto hidden = static_cast<size_t>(config_.hidden);
  std::vector<float> want(hidden);
  for (int64_t token = 0; token < routing_.num_tokens; ++token) {
    Reference(token, want);
    const float* got = out_.data() + static_cast<size_t>(token) * hidden;
    for (size_t i = 0; i < hidden; ++i) totals_.wrong += got[i] != want[i];
  }
  return absl::OkStatus();
}

absl::Status Bench::Measure() {
  TransportStats before, after;
  for (int i = -config_.warmup; i < config_.iterations; ++i) {
    // As in a real step; it also lines the ranks up.
    PORTOLAN_RETURN_IF_ERROR(exchange_->BeginStep({}).status());
    before = transport_.stats();
    const auto begin = std::chrono::steady_clock::now();
    PORTOLAN_RETURN_IF_ERROR(RunOnce(Work::kNone));
    const double seconds = Seconds(std::chrono::steady_clock::now() - begin);
    after = transport_.stats();
    if (i < 0) continue;
    times_.push_back(seconds);
    totals_.bytes_sent += after.bytes_sent - before.bytes_sent;
    totals_.messages_sent += after.messages_sent - before.messages_sent;
  }
  return absl::OkStatus();
}

template <typename T>
absl::StatusOr<std::vector<T>> Bench::AllGather(std::span<const T> mine) {
  PORTOLAN_ASSIGN_OR_RETURN(
      const MessageMemory all,
      portolan::AllGather(transport_, std::as_bytes(mine),
                          WaitContext{.phase = "bench results"}));
  const std::span<const T> values = all.As<T>();
  return std::vector<T>(
      values.begin(),
      values.begin() + static_cast<std::ptrdiff_t>(mine.size()) * world());
}

absl::StatusOr<ExchangeBenchResult> Bench::Gather() {
  const ExchangeCounts& counts = exchange_->counts();
  const int64_t result_bytes = config_.hidden * int64_t{sizeof(float)};
  const int64_t row_bytes = config_.hidden * int64_t{sizeof(Bf16)};
  totals_.tokens = routing_.num_tokens;
  totals_.rows = counts.rows_out;
  totals_.selections = static_cast<int64_t>(routing_.experts.size());
  totals_.selections_in = counts.selections_in;
  const int64_t returned = config_.combine == CombineMode::kExact
                               ? totals_.selections
                               : totals_.rows;
  totals_.rows_bytes = totals_.rows * row_bytes + returned * result_bytes;

  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<Totals> all,
                            AllGather<Totals>({&totals_, 1}));
  PORTOLAN_ASSIGN_OR_RETURN(const std::vector<double> times,
                            AllGather<double>(times_));
  return Summarise(all, times);
}

ExchangeBenchResult Bench::Summarise(std::span<const Totals> totals,
                                     std::span<const double> times) const {
  const size_t iterations = times_.size();
  std::vector<double> slowest(iterations);
  for (size_t i = 0; i < times.size(); ++i) {
    double& time = slowest[i % iterations];
    time = std::max(time, times[i]);
  }
  const double sum = std::accumulate(slowest.begin(), slowest.end(), 0.0);
  const double mean = sum / static_cast<double>(iterations);
  std::sort(slowest.begin(), slowest.end());
  const auto quantile = [&](double q) {
    return absl::Seconds(slowest[static_cast<size_t>(
        q * static_cast<double>(iterations - 1) + 0.5)]);
  };

  ExchangeBenchResult result;
  result.world_size = world();
  result.mean = absl::Seconds(mean);
  result.p50 = quantile(0.5);
  result.p99 = quantile(0.99);
  Totals all;
  int64_t most_in = 0;
  for (const Totals& one : totals) {
    result.tokens += one.tokens;
    result.largest_bytes = std::max(result.largest_bytes, one.rows_bytes);
    result.num_wrong += one.wrong;
    all.rows_bytes += one.rows_bytes;
    all.selections += one.selections;
    all.selections_in += one.selections_in;
    all.bytes_sent += one.bytes_sent;
    all.messages_sent += one.messages_sent;
    most_in = std::max(most_in, one.selections_in);
  }
  const double n = world();
  const auto gbps = [&](int64_t bytes) {
    return static_cast<double>(bytes) / mean * 1e-9;
  };
  const int64_t both_ways =
      config_.hidden * int64_t{sizeof(Bf16) + sizeof(float)};
  result.algbw = gbps(result.largest_bytes);
  result.busbw = result.algbw * (n - 1) / n;
  result.logical_gbps = gbps(all.selections * both_ways);
  result.deduplicated_gbps = gbps(all.rows_bytes);
  result.wire_gbps = static_cast<double>(all.bytes_sent) / sum * 1e-9;
  result.messages =
      static_cast<double>(all.messages_sent) / static_cast<double>(iterations);
  if (most_in > 0) {
    result.balancedness = static_cast<double>(all.selections_in) / n /
                          static_cast<double>(most_in);
    result.imbalance = 1 / result.balancedness;
  }
  result.rounds = exchange_->counts().rounds;
  return result;
}

}  // namespace

absl::Status ExchangeBenchConfig::Validate() const {
  const auto refuse = [](absl::string_view field, int64_t value) {
    return absl::InvalidArgumentError(
        absl::StrCat("bench exchange: ", field, " cannot be ", value));
  };
  if (tokens_per_rank < 0) return refuse("tokens", tokens_per_rank);
  if (hidden < 1) return refuse("hidden", hidden);
  if (num_experts < 1) return refuse("experts", num_experts);
  if (top_k < 1 || top_k > num_experts) return refuse("top-k", top_k);
  if (iterations < 1) return refuse("iterations", iterations);
  if (warmup < 0) return refuse("warmup", warmup);
  return absl::OkStatus();
}

absl::StatusOr<ExchangeBenchResult> RunExchangeBench(
    Transport& transport, const ExchangeBenchConfig& config) {
  PORTOLAN_RETURN_IF_ERROR(config.Validate());
  Bench bench(transport, config);
  PORTOLAN_RETURN_IF_ERROR(bench.Prepare());
  PORTOLAN_RETURN_IF_ERROR(bench.Verify());
  PORTOLAN_RETURN_IF_ERROR(bench.Measure());
  PORTOLAN_RETURN_IF_ERROR(bench.Verify());
  return bench.Gather();
}

}  // namespace portolan
