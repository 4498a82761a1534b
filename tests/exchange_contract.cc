#include "tests/exchange_contract.h"

#include <cstring>
#include <memory>
#include <random>
#include <span>
#include <string>

#include "absl/strings/str_cat.h"
#include "runtime/base/status_macros.h"
#include "runtime/base/thread_pool.h"

namespace portolan::testing {
namespace {

uint64_t Mix(uint64_t a, uint64_t b, uint64_t c = 0, uint64_t d = 0) {
  uint64_t x = a * 0x9e3779b97f4a7c15u + b * 0xbf58476d1ce4e5b9u +
               c * 0x94d049bb133111ebu + d * 0xd6e8feb86659fd93u + 1;
  x ^= x >> 31;
  x *= 0xff51afd7ed558ccdu;
  return x ^ (x >> 33);
}

// In [-1, 1), not exactly representable sums: an order of additions shows.
float Value(uint64_t bits) {
  return static_cast<float>(static_cast<double>(bits >> 11) * 0x1p-52 - 1.0);
}

// One rank's batch at one layer of one step; every rank can make everyone's.
struct Batch {
  int num_tokens = 0;
  std::vector<float> rows;       // [num_tokens, hidden]
  std::vector<int32_t> experts;  // [num_tokens, top_k]
  std::vector<float> weights;
  std::vector<Fp16> hints;  // [2, num_experts]
};

Batch MakeBatch(const ContractCase& c, int rank, int step, int layer) {
  const auto r = static_cast<size_t>(rank);
  Batch batch;
  batch.num_tokens = c.tokens_of_rank[r % c.tokens_of_rank.size()];
  const uint64_t key =
      Mix(c.seed, r, static_cast<uint64_t>(step), static_cast<uint64_t>(layer));
  std::mt19937_64 random(key);
  for (int token = 0; token < batch.num_tokens; ++token) {
    for (int i = 0; i < c.hidden; ++i) batch.rows.push_back(Value(random()));
    std::vector<int32_t> all(static_cast<size_t>(c.num_experts));
    for (size_t e = 0; e < all.size(); ++e) all[e] = static_cast<int32_t>(e);
    for (int k = 0; k < c.top_k; ++k) {
      const auto pick = static_cast<size_t>(random() % all.size());
      batch.experts.push_back(all[pick]);
      all.erase(all.begin() + static_cast<std::ptrdiff_t>(pick));
      batch.weights.push_back(Value(random()) + 1.0f);
    }
  }
  for (int i = 0; i < 2 * c.num_experts; ++i) {
    batch.hints.push_back(Fp16{static_cast<uint16_t>(random())});
  }
  return batch;
}

// The made-up expert: a value depends on the whole row and on the expert.
void Expert(int layer, int expert, std::span<const float> row,
            std::span<float> out) {
  const float scale = 0.3f + 0.7f * static_cast<float>(expert);
  for (size_t i = 0; i < row.size(); ++i) {
    const float next = row[(i + 1) % row.size()];
    out[i] = row[i] * scale + next * static_cast<float>(layer + 1);
  }
}

std::vector<float> ExpertRow(const ContractCase& c, const Batch& batch,
                             int layer, size_t selection) {
  const size_t token = selection / static_cast<size_t>(c.top_k);
  const auto hidden = static_cast<size_t>(c.hidden);
  std::vector<float> out(hidden);
  Expert(layer, batch.experts[selection],
         std::span(batch.rows).subspan(token * hidden, hidden), out);
  return out;
}

// Top-k order; in kReduced the terms of each rank first, then the ranks.
std::vector<float> Reference(const ContractCase& c, const Batch& batch,
                             int layer, std::span<const Rank> owner,
                             int world_size) {
  const auto hidden = static_cast<size_t>(c.hidden);
  const auto top_k = static_cast<size_t>(c.top_k);
  const bool exact = c.combine == CombineMode::kExact || world_size == 1;
  std::vector<float> out(batch.rows.size());
  for (size_t token = 0; token < static_cast<size_t>(batch.num_tokens);
       ++token) {
    std::span<float> sum = std::span(out).subspan(token * hidden, hidden);
    for (int rank = 0; rank < (exact ? 1 : world_size); ++rank) {
      std::vector<float> part(hidden);
      bool first = true;
      for (size_t s = token * top_k; s < (token + 1) * top_k; ++s) {
        const auto expert = static_cast<size_t>(batch.experts[s]);
        if (!exact && ToIndex(owner[expert]) != rank) continue;
        const std::vector<float> row = ExpertRow(c, batch, layer, s);
        for (size_t i = 0; i < hidden; ++i) {
          const float term = batch.weights[s] * row[i];
          part[i] = first ? term : part[i] + term;
        }
        first = false;
      }
      for (size_t i = 0; i < hidden; ++i) {
        sum[i] = exact ? part[i] : sum[i] + part[i];
      }
    }
  }
  return out;
}

absl::Status Differs(absl::string_view what, int rank, int step, int layer) {
  return absl::DataLossError(absl::StrCat(what, " of rank ", rank, ", step ",
                                          step, ", layer ", layer,
                                          " differs from the reference"));
}

absl::Status Compute(const ContractCase& c, int step, int layer,
                     const ReceivedRows& received, MatrixView<float> results) {
  if (c.compute_status) {
    PORTOLAN_RETURN_IF_ERROR(c.compute_status(step, layer));
  }
  for (size_t i = 0; i < received.experts.size(); ++i) {
    const auto* row = reinterpret_cast<const float*>(
        received.rows.data + received.row_of[i] * received.rows.stride_bytes);
    Expert(layer, received.experts[i], {row, static_cast<size_t>(c.hidden)},
           results.Row(static_cast<int64_t>(i)));
  }
  return absl::OkStatus();
}

// The hints of every source for this rank's experts at layer + distance.
absl::Status CheckHints(const TokenExchange& exchange, const ContractCase& c,
                        int step, int layer) {
  const int world = static_cast<int>(c.tokens_of_rank.size());
  for (int source = 0; source < world; ++source) {
    const Batch batch = MakeBatch(c, source, step, layer);
    for (int d = 0; d < 2; ++d) {
      const int target = layer + d + 1;
      const auto got = exchange.received_hints(Rank{source}, d);
      std::vector<Fp16> want;
      if (c.hints && target < c.num_layers) {
        for (const int32_t expert : exchange.owned_experts(target)) {
          want.push_back(
              batch.hints[static_cast<size_t>(d * c.num_experts + expert)]);
        }
      }
      if (!std::equal(got.begin(), got.end(), want.begin(), want.end())) {
        return Differs("hint", source, step, layer);
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckStepRecords(std::span<const StepRecord> records, int step) {
  for (size_t rank = 0; rank < records.size(); ++rank) {
    const StepRecord& record = records[rank];
    if (record.rows_planned != static_cast<int64_t>(rank) * 10 + step ||
        record.has_work != (rank % 2 == 0) || record.drain != (step == 1) ||
        record.placement_version != 5) {
      return Differs("step record", static_cast<int>(rank), step, -1);
    }
  }
  return absl::OkStatus();
}

absl::Status RunLayer(TokenExchange& exchange, const ContractCase& c,
                      const OwnerTable& owner, int step, int layer,
                      std::vector<float>& out) {
  const int rank = ToIndex(exchange.transport().rank());
  const Batch batch = MakeBatch(c, rank, step, layer);
  out.assign(batch.rows.size(), -1.0f);
  const Routing routing{.num_tokens = batch.num_tokens,
                        .top_k = c.top_k,
                        .experts = batch.experts,
                        .weights = batch.weights};
  const ActivationRows rows{
      reinterpret_cast<const std::byte*>(batch.rows.data()),
      c.hidden * int64_t{sizeof(float)}};
  PORTOLAN_RETURN_IF_ERROR(exchange.Run(
      layer, routing, rows,
      c.hints ? std::span<const Fp16>(batch.hints) : std::span<const Fp16>(),
      MatrixView<float>(out, batch.num_tokens, c.hidden),
      [&](const ReceivedRows& received, MatrixView<float> results) {
        return Compute(c, step, layer, received, results);
      }));
  const std::vector<float> want =
      Reference(c, batch, layer, owner[static_cast<size_t>(layer)],
                exchange.transport().world_size());
  if (out.size() != want.size() ||
      (!want.empty() &&
       std::memcmp(out.data(), want.data(), want.size() * 4) != 0)) {
    return Differs("output", rank, step, layer);
  }
  return CheckHints(exchange, c, step, layer);
}

}  // namespace

ExchangeOptions OptionsOf(const ContractCase& c) {
  ExchangeOptions options;
  options.num_layers = c.num_layers;
  options.num_experts = c.num_experts;
  options.top_k = c.top_k;
  options.hidden = c.hidden;
  options.row_bytes = c.hidden * int64_t{sizeof(float)};
  options.combine = c.combine;
  options.buffer_bytes = c.buffer_bytes;
  options.eager_bytes = c.eager_bytes;
  options.hint_distances = {1, 2};
  options.numerics_id = c.numerics_id;
  options.phase_hook = c.phase_hook;
  options.start_timeout = absl::Seconds(30);
  options.step_timeout = c.step_timeout;
  options.epoch = c.epoch;
  options.expert_load_time = c.expert_load_time;
  return options;
}

OwnerTable UnevenOwners(const ContractCase& c, int world_size) {
  OwnerTable owner(static_cast<size_t>(c.num_layers));
  for (size_t layer = 0; layer < owner.size(); ++layer) {
    for (int expert = 0; expert < c.num_experts; ++expert) {
      const bool last = expert % 2 == 1;
      owner[layer].push_back(Rank{
          last ? world_size - 1
               : static_cast<int>((static_cast<size_t>(expert) / 2 + layer) %
                                  static_cast<size_t>(world_size))});
    }
  }
  return owner;
}

absl::Status CheckExchange(Transport& transport, const ContractCase& c_in,
                           std::vector<float>* outputs) {
  ContractCase c = c_in;
  c.tokens_of_rank.clear();  // now exactly one entry per rank
  for (int rank = 0; rank < transport.world_size(); ++rank) {
    c.tokens_of_rank.push_back(c_in.tokens_of_rank[static_cast<size_t>(rank) %
                                                   c_in.tokens_of_rank.size()]);
  }
  const OwnerTable owner = UnevenOwners(c, transport.world_size());
  ThreadPool pool(c.threads);
  ExchangeOptions options = OptionsOf(c);
  if (c.threads > 1) options.pool = &pool;
  PORTOLAN_ASSIGN_OR_RETURN(const std::unique_ptr<TokenExchange> exchange,
                            TokenExchange::Create(transport, options, owner));
  const int rank = ToIndex(transport.rank());
  std::vector<float> out;
  for (int step = 0; step < c.steps; ++step) {
    StepRecord mine;
    mine.has_work = rank % 2 == 0;
    mine.drain = step == 1;
    mine.rows_planned = rank * 10 + step;
    mine.placement_version = 5;
    PORTOLAN_ASSIGN_OR_RETURN(const auto records, exchange->BeginStep(mine));
    PORTOLAN_RETURN_IF_ERROR(CheckStepRecords(records, step));
    for (int layer = 0; layer < c.num_layers; ++layer) {
      PORTOLAN_RETURN_IF_ERROR(RunLayer(*exchange, c, owner, step, layer, out));
      if (outputs != nullptr && step == c.steps - 1) {
        outputs->insert(outputs->end(), out.begin(), out.end());
      }
    }
  }
  return absl::OkStatus();
}

absl::Status CheckAllCases(Transport& transport) {
  std::vector<ContractCase> cases(8);
  cases[1].combine = CombineMode::kReduced;
  cases[2].eager_bytes = 1024;  // rows and results in messages of their own
  cases[2].hidden = 700;
  cases[3] = cases[2];
  cases[3].combine = CombineMode::kReduced;
  cases[4].buffer_bytes = 16 << 10;  // several rounds
  cases[5].tokens_of_rank = {0};
  cases[6].tokens_of_rank = {300, 0, 200};  // rows larger than a ring
  cases[6].hidden = 1100;
  cases[6].hints = false;
  cases[7] = cases[6];
  cases[7].threads = 3;
  for (size_t i = 0; i < cases.size(); ++i) {
    if (absl::Status status = CheckExchange(transport, cases[i]);
        !status.ok()) {
      return absl::Status(status.code(),
                          absl::StrCat("case ", i, ": ", status.message()));
    }
  }
  return absl::OkStatus();
}

}  // namespace portolan::testing
