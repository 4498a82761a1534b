// The promise of exactness, bit by bit: logits, keys and values of a sequence
// depend on nothing but the sequence.

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "runtime/kernels/kv_layout.h"
#include "tests/model_fixture.h"

namespace portolan {
namespace {

// 80 tokens: three KV pages, the last one half full.
std::vector<int32_t> Text() {
  std::vector<int32_t> text;
  for (int32_t i = 0; i < 80; ++i) text.push_back((i * 739 + 11) % 4093);
  return text;
}

struct Bits {
  std::vector<std::vector<float>> logits;
  std::vector<std::byte> kv;
};

// Bitwise, unlike float's ==.
bool SameLogits(const Bits& a, const Bits& b) {
  if (a.logits.size() != b.logits.size()) return false;
  for (size_t i = 0; i < a.logits.size(); ++i) {
    if (std::memcmp(a.logits[i].data(), b.logits[i].data(),
                    a.logits[i].size() * sizeof(float)) != 0) {
      return false;
    }
  }
  return true;
}

// Computes Text() in chunks of `chunk` tokens (0: whole) on the last rank; the
// others take part without tokens, or with one of their own if `company`.
Bits Compute(JobOptions options, int64_t chunk, bool company = false) {
  Bits bits;
  options.tokens_per_step = 128;
  options.logit_rows = 128;
  const std::vector<int32_t> text = Text();
  const auto size = chunk == 0 ? text.size() : static_cast<size_t>(chunk);
  const absl::Status status =
      RunJob(options, [&](const Model& model, RunWorld run_world) {
        const KvLayout layout{.num_kv_heads = model.config.num_kv_heads,
                              .head_dim = model.config.head_dim,
                              .dtype = options.activations};
        return run_world([&](Transport& transport) -> absl::Status {
          NoSink sink;
          auto rank = RankRuntime::Create(options, model, transport, sink);
          if (!rank.ok()) return rank.status();
          SequenceRunner runner(**rank);
          const bool computes =
              ToIndex(transport.rank()) == transport.world_size() - 1;
          const std::vector<int32_t> other = {17};
          std::vector<std::vector<float>> logits;
          for (size_t first = 0; first < text.size(); first += size) {
            std::span<const int32_t> part;
            if (computes) {
              part = std::span(text).subspan(
                  first, std::min(size, text.size() - first));
            } else if (company) {
              part = other;
            }
            if (auto s = runner.Append(part, logits); !s.ok()) return s;
          }
          if (computes) {
            bits.logits = std::move(logits);
            bits.kv =
                runner.KvBytes(model.config.num_layers, layout.PageBytes());
          }
          return absl::OkStatus();
        });
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(bits.logits.size(), text.size());
  return bits;
}

class ExactnessTest : public ::testing::Test {
 protected:
  static const Bits& Reference() {
    static const Bits bits = Compute(BundledModel(), 1);
    return bits;
  }

  static void ExpectSame(const Bits& bits) {
    EXPECT_TRUE(SameLogits(bits, Reference())) << "logits differ";
    EXPECT_TRUE(bits.kv == Reference().kv) << "keys or values differ";
  }
};

TEST_F(ExactnessTest, PrefillInChunksEqualsTokenByTokenDecoding) {
  for (const int64_t chunk : {7, 64, 0}) {
    SCOPED_TRACE(chunk);
    ExpectSame(Compute(BundledModel(), chunk));
  }
}

TEST_F(ExactnessTest, AnyNumberOfRanksGivesTheSameBits) {
  for (const int ranks : {2, 3, 5}) {
    SCOPED_TRACE(ranks);
    ExpectSame(Compute(BundledModel(ranks), 0));
  }
}

TEST_F(ExactnessTest, TokensOfOtherRanksChangeNothing) {
  ExpectSame(Compute(BundledModel(3), 7, /*company=*/true));
}

TEST_F(ExactnessTest, AnyNumberOfThreadsGivesTheSameBits) {
  for (const int threads : {2, 3}) {
    SCOPED_TRACE(threads);
    JobOptions options = BundledModel();
    options.threads = threads;
    ExpectSame(Compute(options, 0));
  }
}

// Sequences of other lengths and at other positions in the same steps, one of
// them prefilled while the others decode.
TEST_F(ExactnessTest, OtherSequencesOfTheSameRankChangeNoLogit) {
  for (const int ranks : {1, 2}) {
    SCOPED_TRACE(ranks);
    JobOptions options = BundledModel(ranks);
    options.tokens_per_step = 128;
    options.logit_rows = 128;
    options.batch = 3;
    const std::vector<int32_t> text = Text();
    const std::vector<int32_t> other(text.rbegin(), text.rend());
    std::vector<std::vector<float>> logits;
    std::vector<std::vector<float>> of_other;
    const absl::Status status = RunJob(options, [&](const Model& model,
                                                    RunWorld run_world) {
      return run_world([&](Transport& transport) -> absl::Status {
        NoSink sink;
        auto rank = RankRuntime::Create(options, model, transport, sink);
        if (!rank.ok()) return rank.status();
        std::vector<std::vector<float>> here;
        std::vector<std::vector<float>> beside;
        std::vector<int32_t> pages[3];
        // Tokens of the three sequences in each of ten steps.
        int64_t done[3] = {};
        for (int step = 0; step < 10; ++step) {
          const int64_t counts[3] = {8, step == 4 ? 30 : 1, step < 2 ? 0 : 7};
          std::vector<ForwardSequence> sequences;
          for (int i = 0; i < 3; ++i) {
            if (counts[i] == 0) continue;
            PORTOLAN_CHECK((*rank)->kv().Grow(pages[i], done[i] + counts[i]));
            sequences.push_back(
                {.id = i,
                 .tokens = std::span(i == 0 ? text : other)
                               .subspan(static_cast<size_t>(done[i]),
                                        static_cast<size_t>(counts[i])),
                 .first_position = done[i],
                 .pages = pages[i],
                 .logits = LogitRows::kAll});
          }
          (*rank)->forward().Begin(sequences);
          StepRecord record;
          record.has_work = true;
          record.rows_planned = (*rank)->forward().num_tokens();
          const auto begun = (*rank)->exchange().BeginStep(record);
          if (!begun.ok()) return begun.status();
          int64_t all = 0;
          for (const StepRecord& r : *begun) all += r.rows_planned;
          const auto rows = (*rank)->forward().Run(all);
          if (!rows.ok()) return rows.status();
          int64_t row = 0;
          for (int i = 0; i < 3; ++i) {
            for (int64_t n = 0; n < counts[i]; ++n, ++row) {
              const auto values = rows->Row(row);
              if (i == 0) here.emplace_back(values.begin(), values.end());
              if (i == 2) beside.emplace_back(values.begin(), values.end());
            }
            done[i] += counts[i];
          }
        }
        if (transport.rank() == Rank{0}) {
          logits = std::move(here);
          of_other = std::move(beside);
        }
        return absl::OkStatus();
      });
    });
    ASSERT_TRUE(status.ok()) << status;

    EXPECT_TRUE(SameLogits({.logits = logits, .kv = {}},
                           {.logits = Reference().logits, .kv = {}}));
    EXPECT_EQ(of_other.size(), 56u);
    EXPECT_NE(of_other[0], logits[0]);
  }
}

class CpuPathTest : public ExactnessTest,
                    public ::testing::WithParamInterface<CpuPath> {};

TEST_P(CpuPathTest, GivesTheSameBits) {
  if (!CpuSupports(GetParam())) {
    GTEST_SKIP() << "this CPU has no " << CpuPathName(GetParam());
  }
  JobOptions options = BundledModel();
  options.cpu_path = GetParam();
  ExpectSame(Compute(options, 64));
}

INSTANTIATE_TEST_SUITE_P(All, CpuPathTest,
                         ::testing::Values(CpuPath::kScalar, CpuPath::kAvx2,
                                           CpuPath::kAvx512,
                                           CpuPath::kAvx512Bf16, CpuPath::kAmx),
                         [](const auto& param) {
                           return std::string(CpuPathName(param.param));
                         });

TEST_F(ExactnessTest, AnExchangeInRoundsGivesTheSameBits) {
  JobOptions options = BundledModel(2);
  options.exchange_memory_bytes = 256 << 10;
  ExpectSame(Compute(options, 64));
}

TEST_F(ExactnessTest, ExpertsThatDoNotFitGiveTheSameBits) {
  for (const char* budget : {"50%", "12.5%", "2%"}) {
    SCOPED_TRACE(budget);
    JobOptions options = BundledModel(2);
    options.expert_memory = budget;
    ExpectSame(Compute(options, 7));
  }
}

}  // namespace
}  // namespace portolan
