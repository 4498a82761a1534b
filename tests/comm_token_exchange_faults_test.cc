// What TokenExchange does when something goes wrong, and what it costs.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <functional>
#include <latch>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "comm/local_world.h"
#include "comm/message.h"
#include "comm/token_exchange.h"
#include "tests/exchange_contract.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using testing::CheckExchange;
using testing::ContractCase;
using ::testing::HasSubstr;

// The status of each rank after CheckExchange() with what `change` makes of the
// case on that rank.
std::vector<absl::Status> RunRanks(
    int world_size,
    const std::function<void(int rank, ContractCase& c)>& change) {
  std::vector<absl::Status> results(static_cast<size_t>(world_size));
  (void)RunLocalWorld(world_size, [&](Transport& transport) {
    const int rank = ToIndex(transport.rank());
    ContractCase c;
    c.tokens_of_rank = {9};
    change(rank, c);
    absl::Status& result = results[static_cast<size_t>(rank)];
    result = CheckExchange(transport, c);
    return result;
  });
  return results;
}

std::string Text(const absl::Status& status) {
  return std::string(status.message());
}

TEST(TokenExchangeFaultTest, AFailedComputeEndsEveryRankWithItsStatus) {
  const auto results = RunRanks(3, [](int rank, ContractCase& c) {
    if (rank != 1) return;
    c.compute_status = [](int64_t step, int layer) {
      return step == 1 && layer == 2 ? absl::DataLossError("expert L2/E4")
                                     : absl::OkStatus();
    };
  });

  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsDataLoss(result)) << result;
    EXPECT_THAT(Text(result), HasSubstr("expert L2/E4"));
  }
}

TEST(TokenExchangeFaultTest, AnAbortNamesRankHostPhaseLayerAndStep) {
  const auto results = RunRanks(2, [](int rank, ContractCase& c) {
    if (rank != 1) return;
    c.compute_status = [](int64_t step, int layer) {
      return step == 1 && layer == 2 ? absl::DataLossError("expert L2/E4")
                                     : absl::OkStatus();
    };
  });

  EXPECT_THAT(Text(results[0]),
              AllOf(HasSubstr("rank 1 on "),
                    HasSubstr("phase `compute` of layer 2, step 1"),
                    HasSubstr("expert L2/E4")));
}

TEST(TokenExchangeFaultTest, AnAbortReachesRanksThatAreOwedNoRows) {
  // Nobody has tokens: no combine message is due that could carry the abort.
  const auto results = RunRanks(3, [](int rank, ContractCase& c) {
    c.tokens_of_rank = {0};
    if (rank != 2) return;
    c.compute_status = [](int64_t, int layer) {
      return layer == 1 ? absl::UnavailableError("disk") : absl::OkStatus();
    };
  });

  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsUnavailable(result)) << result;
  }
}

TEST(TokenExchangeFaultTest, ARankThatBeginsAStepWithAnErrorEndsAll) {
  std::vector<absl::Status> results(3);
  (void)RunLocalWorld(3, [&](Transport& transport) {
    const ContractCase c;
    const int rank = ToIndex(transport.rank());
    absl::Status& result = results[static_cast<size_t>(rank)];
    auto exchange = TokenExchange::Create(transport, testing::OptionsOf(c),
                                          testing::UnevenOwners(c, 3));
    result = exchange.status();
    if (!result.ok()) return result;  // rank 0 had ended before this was done
    StepRecord mine;
    if (rank == 0) mine.abort = absl::ResourceExhaustedError("no KV pages");
    result = (*exchange)->BeginStep(mine).status();
    EXPECT_EQ((*exchange)->BeginStep({}).status(), result);  // and stays so
    return result;
  });

  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsResourceExhausted(result)) << result;
    EXPECT_THAT(Text(result), HasSubstr("no KV pages"));
  }
}

TEST(TokenExchangeFaultTest, ARankThatIsTooSlowIsNamed) {
  absl::Status of_rank_zero;
  std::latch given_up(1);
  (void)RunLocalWorld(2, [&](Transport& transport) {
    const ContractCase c;
    ExchangeOptions options = testing::OptionsOf(c);
    options.step_timeout = absl::Milliseconds(10);  // the least wait is 1 s
    auto exchange =
        TokenExchange::Create(transport, options, testing::UnevenOwners(c, 2));
    if (!exchange.ok()) return exchange.status();
    if (transport.rank() == Rank{1}) {
      given_up.wait();
      return absl::OkStatus();
    }
    of_rank_zero = (*exchange)->BeginStep({}).status();
    given_up.count_down();
    return of_rank_zero;
  });

  EXPECT_TRUE(absl::IsDeadlineExceeded(of_rank_zero)) << of_rank_zero;
  EXPECT_THAT(Text(of_rank_zero),
              AllOf(HasSubstr("rank 1 on "), HasSubstr("slow"),
                    HasSubstr("phase `step record` of step 0")));
}

TEST(TokenExchangeFaultTest, ARankThatLeavesIsNamed) {
  std::vector<absl::Status> results(3);
  (void)RunLocalWorld(3, [&](Transport& transport) {
    const int rank = ToIndex(transport.rank());
    ContractCase c;
    c.steps = rank == 2 ? 1 : 2;
    results[static_cast<size_t>(rank)] = CheckExchange(transport, c);
    return results[static_cast<size_t>(rank)];
  });

  EXPECT_TRUE(results[2].ok());
  for (int rank = 0; rank < 2; ++rank) {
    const absl::Status& result = results[static_cast<size_t>(rank)];
    EXPECT_TRUE(absl::IsAborted(result)) << result;
  }
  EXPECT_THAT(Text(results[0]) + Text(results[1]), HasSubstr("rank 2 on "));
}

// Both ranks after rank 0 sent a header that `damage` has changed, in step 1
// (and layer 0).
std::vector<absl::Status> AfterDamage(
    ExchangePhase phase, const std::function<void(MessageHeader&)>& damage,
    int64_t buffer_bytes = ContractCase().buffer_bytes, int32_t round = 0) {
  return RunRanks(2, [&](int rank, ContractCase& c) {
    c.buffer_bytes = buffer_bytes;
    c.phase_hook = [=](const PhaseEvent& event) {
      if (rank != 0 || event.phase != phase || event.step != 1 ||
          event.layer > 0) {
        return;
      }
      MessageHeader header;
      std::memcpy(&header, event.outgoing.data(), sizeof(header));
      if (header.round != round) return;
      damage(header);
      std::memcpy(event.outgoing.data(), &header, sizeof(header));
    };
  });
}

TEST(TokenExchangeFaultTest, ADamagedHeaderIsNamedWithBothValues) {
  const auto results = AfterDamage(ExchangePhase::kHeader,
                                   [](MessageHeader& h) { h.step = 41; });

  EXPECT_TRUE(absl::IsInternal(results[1])) << results[1];
  EXPECT_THAT(Text(results[1]),
              AllOf(HasSubstr("rank 0 on "), HasSubstr("step 41"),
                    HasSubstr("expects 1")));
  EXPECT_THAT(Text(results[0]), HasSubstr("rank 1 on "));
}

TEST(TokenExchangeFaultTest, ADamagedHeaderIsNamedWithItsPlaceOnBothRanks) {
  for (const ExchangePhase phase :
       {ExchangePhase::kStepRecord, ExchangePhase::kHeader,
        ExchangePhase::kCombine}) {
    const auto results =
        AfterDamage(phase, [](MessageHeader& h) { h.magic = 1; });

    const std::string place = phase == ExchangePhase::kStepRecord
                                  ? "in phase `step record` of step 1"
                                  : absl::StrCat("in phase `", ToString(phase),
                                                 "` of layer 0, step 1");
    EXPECT_THAT(Text(results[1]),
                AllOf(HasSubstr("rank 0 on "), HasSubstr("seen by rank 1 on "),
                      HasSubstr(place)));
    EXPECT_THAT(Text(results[0]),
                AllOf(HasSubstr("rank 1 on "), HasSubstr("rank 0 on "),
                      HasSubstr(place)));
  }
}

TEST(TokenExchangeFaultTest, AMessageOfAnotherEpochIsRefusedByName) {
  const auto results = AfterDamage(ExchangePhase::kCombine,
                                   [](MessageHeader& h) { h.epoch += 1; });

  EXPECT_THAT(Text(results[1]),
              AllOf(HasSubstr("rank 0 on "), HasSubstr("epoch 1"),
                    HasSubstr("expects 0")));
}

TEST(TokenExchangeFaultTest, ARankOfAnotherEpochIsRefusedAtTheStart) {
  const auto results = RunRanks(
      3, [](int rank, ContractCase& c) { c.epoch = rank == 2 ? 0x51 : 0x50; });

  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsFailedPrecondition(result)) << result;
    EXPECT_THAT(Text(result), AllOf(HasSubstr("rank 2 on "),
                                    HasSubstr("another job and restart than")));
  }
}

TEST(TokenExchangeFaultTest, RoundsThatDoNotFitAreRefused) {
  constexpr int64_t kSmall = 10 << 10;  // several rounds
  const auto none = AfterDamage(ExchangePhase::kHeader,
                                [](MessageHeader& h) { h.rounds = 0; });
  const auto other = AfterDamage(
      ExchangePhase::kHeader, [](MessageHeader& h) { ++h.rounds; }, kSmall, 1);
  const auto rows = AfterDamage(
      ExchangePhase::kHeader, [](MessageHeader& h) { h.rounds = 1; }, kSmall);

  EXPECT_THAT(Text(none[1]), HasSubstr("rounds 0"));
  EXPECT_THAT(Text(other[1]), HasSubstr("where it began with"));
  EXPECT_THAT(Text(rows[1]), HasSubstr("in round 1 of"));
}

// Rank 1 computes for longer than the least wait of a second.
std::vector<absl::Status> AfterASlowLayer(absl::Duration expert_load_time) {
  return RunRanks(2, [&](int rank, ContractCase& c) {
    c.step_timeout = absl::Milliseconds(1);
    c.steps = 1;
    if (rank == 0) return;
    c.expert_load_time = expert_load_time;
    c.compute_status = [](int64_t, int layer) {
      if (layer == 0) absl::SleepFor(absl::Seconds(2.5));
      return absl::OkStatus();
    };
  });
}

TEST(TokenExchangeFaultTest, ExpertsToLoadExtendTheDeadlineOfAStep) {
  // Rank 1 of the two plans 10 rows: 500 ms. All its 8 experts of 3 layers may
  // have to be loaded.
  const auto without = AfterASlowLayer({});
  const auto with = AfterASlowLayer(absl::Seconds(1));

  EXPECT_TRUE(absl::IsDeadlineExceeded(without[0])) << without[0];
  EXPECT_TRUE(with[0].ok()) << with[0];
}

TEST(TokenExchangeFaultTest, AnotherNumericsIdIsRefusedByNameOnEveryRank) {
  const auto results = RunRanks(3, [](int rank, ContractCase& c) {
    if (rank == 0) c.numerics_id = 0xabc;
  });

  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsFailedPrecondition(result)) << result;
    EXPECT_THAT(Text(result), AllOf(HasSubstr("rank 0 on "),
                                    HasSubstr("another numerics (")));
  }
}

TEST(TokenExchangeFaultTest, AnExpertThatDoesNotExistEndsAllRanks) {
  std::vector<absl::Status> results(2);
  (void)RunLocalWorld(2, [&](Transport& transport) {
    const ContractCase c;
    auto exchange = TokenExchange::Create(transport, testing::OptionsOf(c),
                                          testing::UnevenOwners(c, 2))
                        .value();
    const int rank = ToIndex(transport.rank());
    const std::vector<int32_t> experts = {rank == 0 ? 11 : 10};
    const std::vector<float> weights = {1}, row(40);
    std::vector<float> out(40);
    absl::Status& result = results[static_cast<size_t>(rank)];
    result =
        exchange->Run(0, {1, 1, experts, weights},
                      {reinterpret_cast<const std::byte*>(row.data()), 160}, {},
                      MatrixView<float>(out, 1, 40),
                      [](const ReceivedRows&, MatrixView<float>) {
                        return absl::OkStatus();
                      });
    return result;
  });

  for (const absl::Status& result : results) {
    EXPECT_TRUE(absl::IsInvalidArgument(result)) << result;
    EXPECT_THAT(Text(result), HasSubstr("expert 11"));
  }
}

// What rank 1 gets in two exchanges after rank 0 sent `sent` bytes where 8 are
// expected.
std::vector<absl::Status> AfterMessageOf(size_t sent) {
  std::vector<absl::Status> results;
  (void)RunLocalWorld(2, [&](Transport& transport) {
    const WaitContext context{.phase = "gather", .step = 6, .layer = 2};
    std::vector<std::byte> out(sent), in(8);
    std::vector<std::span<const std::byte>> send(2);
    std::vector<std::span<std::byte>> recv(2);
    if (transport.rank() == Rank{0}) {
      send[1] = out;
      return transport.AllToAllV(send, recv, context);
    }
    recv[0] = in;
    results.push_back(transport.AllToAllV(send, recv, context));
    recv[0] = {};
    results.push_back(transport.AllToAllV(send, recv, context));
    return absl::OkStatus();
  });
  return results;
}

TEST(TransportFaultTest, AMessageOfAnotherSizeBreaksTheWorldAndNamesItsSender) {
  for (const size_t size : {5, 12}) {
    const auto results = AfterMessageOf(size);

    EXPECT_TRUE(absl::IsInternal(results[0])) << results[0];
    EXPECT_THAT(
        Text(results[0]),
        AllOf(HasSubstr("rank 0 on "), HasSubstr(absl::StrCat(size, " bytes")),
              HasSubstr("phase `gather` of layer 2, step 6")));
    EXPECT_EQ(results[1], results[0]);
  }
}

std::vector<std::vector<float>> Outputs(int world_size, const ContractCase& c) {
  std::vector<std::vector<float>> outputs(static_cast<size_t>(world_size));
  const absl::Status status =
      RunLocalWorld(world_size, [&](Transport& transport) {
        return CheckExchange(
            transport, c,
            &outputs[static_cast<size_t>(ToIndex(transport.rank()))]);
      });
  EXPECT_TRUE(status.ok()) << status;
  return outputs;
}

TEST(TokenExchangeCostTest, ManyRoundsGiveTheBitsOfOne) {
  for (const CombineMode mode : {CombineMode::kExact, CombineMode::kReduced}) {
    ContractCase one, many;
    one.combine = many.combine = mode;
    many.buffer_bytes = 10 << 10;
    ASSERT_GE(RoundTokens(testing::OptionsOf(one), 3), 13);
    ASSERT_LE(RoundTokens(testing::OptionsOf(many), 3), 4);

    EXPECT_EQ(Outputs(3, one), Outputs(3, many));
  }
}

TEST(TokenExchangeCostTest, BuffersForLessThanOneTokenAreRefused) {
  const absl::Status status = RunLocalWorld(2, [](Transport& transport) {
    ContractCase c;
    c.buffer_bytes = 1000;
    return CheckExchange(transport, c);
  });

  EXPECT_TRUE(absl::IsInvalidArgument(status)) << status;
}

TEST(TokenExchangeCostTest, NoMessageOfARoundIsLargerThanMpiCarries) {
  ExchangeOptions options = testing::OptionsOf(ContractCase());
  options.hidden = 7168;
  options.row_bytes = 2 * options.hidden;
  options.top_k = 8;
  options.buffer_bytes = int64_t{1} << 50;
  options.max_round_tokens = 1 << 30;

  const int64_t tokens = RoundTokens(options, 2);

  EXPECT_GT(tokens, 4096);
  EXPECT_LE(tokens * options.top_k * options.hidden * 4, INT32_MAX);
}

// Messages and bytes that rank 0 of 2 sends in two steps of three layers.
TransportStats CostOf(const ContractCase& c) {
  TransportStats cost;
  const absl::Status status = RunLocalWorld(2, [&](Transport& transport) {
    const absl::Status checked = CheckExchange(transport, c);
    if (transport.rank() == Rank{0}) cost = transport.stats();
    return checked;
  });
  EXPECT_TRUE(status.ok()) << status;
  return cost;
}

TEST(TokenExchangeCostTest, ADecodeLayerCostsTwoMessagesPerPair) {
  ContractCase c;
  c.tokens_of_rank = {9};

  const TransportStats cost = CostOf(c);

  // One to agree, one record per step; per layer a dispatch and a combine.
  EXPECT_EQ(cost.messages_sent, 1 + 2 * (1 + 3 * 2));
  EXPECT_EQ(cost.messages_received, cost.messages_sent);
}

TEST(TokenExchangeCostTest, WithoutTokensALayerCostsOneHeader) {
  ContractCase c;
  c.tokens_of_rank = {0};
  c.hints = false;

  const TransportStats cost = CostOf(c);

  EXPECT_EQ(cost.messages_sent, 1 + 2 * (1 + 3));
}

TEST(TokenExchangeCostTest, HintsCostTheirBytesAndNoMessage) {
  ContractCase with, without;
  with.tokens_of_rank = without.tokens_of_rank = {9};
  without.hints = false;

  const TransportStats a = CostOf(with), b = CostOf(without);

  EXPECT_EQ(a.messages_sent, b.messages_sent);
  // Rank 1 of 2 holds 5 odd experts and some of the 6 even ones: 8, 8 and 8 of
  // 11 in layers 0 to 2. Layer 0 hints at layers 1 and 2, layer 1 at layer 2.
  EXPECT_EQ(a.bytes_sent - b.bytes_sent, 2 * 2 * ((8 + 8) + 8));
}

}  // namespace
}  // namespace portolan
