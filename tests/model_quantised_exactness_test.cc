// The promise of exactness with quantised experts and dense matrices: the bits
// are those of the quantised model, on any number of ranks, in any batch,
// within any budget, on every path.

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <memory>
#include <vector>

#include "experts/quantised_expert.h"
#include "runtime/model/checkpoint/expert_reader.h"
#include "tests/checkpoint_files.h"
#include "tests/model_fixture.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

using Logits = std::vector<std::vector<float>>;

// A text of its own for each sequence of a batch.
std::vector<int32_t> Text(int32_t sequence) {
  std::vector<int32_t> text;
  for (int32_t i = 0; i < 40; ++i) {
    text.push_back((i * 739 + 11 + 17 * sequence) % 4093);
  }
  return text;
}

// Packs of the bundled model in both formats, written once.
class Packs {
 public:
  Packs() {
    const absl::Status status =
        RunJob(BundledModel(), [&](const Model& model, RunWorld) {
          for (const WeightFormat format :
               {WeightFormat::kInt8, WeightFormat::kInt4}) {
            CheckpointExpertSource experts(model.experts, *model.checkpoint);
            QuantisingSource source(model.experts.shape(), format, experts);
            const absl::Status written = WritePack(
                dir_.File(PackFileName(format)), PackIdentityOf(model, format),
                source, [](int64_t, int64_t) {});
            if (!written.ok()) return written;
          }
          return absl::OkStatus();
        });
    PORTOLAN_CHECK(status.ok());
  }

  const std::string& dir() const { return dir_.path(); }

 private:
  TempDir dir_;
};

JobOptions Quantised(WeightFormat format, int ranks = 1) {
  static const Packs packs;
  JobOptions options = BundledModel(ranks);
  options.weights = format;
  options.dense_weights = format;
  options.pack_dir = packs.dir();
  return options;
}

// The logits of sequence 0 on the last rank, which computes `batch` sequences
// together, the prompt whole and then token by token.
absl::StatusOr<Logits> Compute(JobOptions options, int32_t batch) {
  Logits logits;
  options.tokens_per_step = 512;
  options.logit_rows = 512;
  options.batch = batch;
  const absl::Status status = RunJob(options, [&](const Model& model,
                                                  RunWorld run_world) {
    return run_world([&](Transport& transport) -> absl::Status {
      NoSink sink;
      auto rank = RankRuntime::Create(options, model, transport, sink);
      if (!rank.ok()) return rank.status();
      const bool computes =
          ToIndex(transport.rank()) == transport.world_size() - 1;
      BatchRunner runner(**rank, computes ? batch : 1);
      const int64_t prompt = 33;
      for (int64_t first = 0; first < 40; first += first == 0 ? prompt : 1) {
        const int64_t count = first == 0 ? prompt : 1;
        auto rows = runner.Step(
            [&](int32_t sequence) { return Text(sequence); }, first, count);
        if (!rows.ok()) return rows.status();
        if (!computes) continue;
        for (int64_t row = 0; row < count; ++row) {
          logits.emplace_back(rows->Row(row).begin(), rows->Row(row).end());
        }
      }
      return absl::OkStatus();
    });
  });
  if (!status.ok()) return status;
  return logits;
}

bool SameBits(const Logits& a, const Logits& b) {
  if (a.size() != b.size()) return false;
  for (size_t i = 0; i < a.size(); ++i) {
    if (std::memcmp(a[i].data(), b[i].data(), a[i].size() * sizeof(float)) !=
        0) {
      return false;
    }
  }
  return true;
}

// Squares of the differences over those of `expected`.
double RelativeError(const Logits& actual, const Logits& expected) {
  double difference = 0;
  double all = 0;
  for (size_t i = 0; i < expected.size(); ++i) {
    for (size_t j = 0; j < expected[i].size(); ++j) {
      difference += std::pow(actual[i][j] - expected[i][j], 2);
      all += std::pow(expected[i][j], 2);
    }
  }
  return difference / all;
}

class QuantisedExactnessTest : public ::testing::TestWithParam<WeightFormat> {
 protected:
  // On the scalar path.
  static const Logits& Reference(WeightFormat format) {
    const auto compute = [](WeightFormat of) {
      JobOptions options = Quantised(of);
      options.cpu_path = CpuPath::kScalar;
      return Compute(options, 1).value();
    };
    static const Logits int8 = compute(WeightFormat::kInt8);
    static const Logits int4 = compute(WeightFormat::kInt4);
    return format == WeightFormat::kInt8 ? int8 : int4;
  }

  void ExpectSame(const JobOptions& options, int32_t batch) {
    const auto logits = Compute(options, batch);
    ASSERT_TRUE(logits.ok()) << logits.status();
    EXPECT_TRUE(SameBits(*logits, Reference(GetParam())));
  }
};

INSTANTIATE_TEST_SUITE_P(Formats, QuantisedExactnessTest,
                         ::testing::Values(WeightFormat::kInt8,
                                           WeightFormat::kInt4),
                         [](const auto& of) {
                           return std::string(WeightFormatName(of.param));
                         });

TEST_P(QuantisedExactnessTest, RanksAndBatchesDoNotShow) {
  for (const int ranks : {1, 2, 3}) {
    for (const int32_t batch : {1, 8}) {
      SCOPED_TRACE(absl::StrCat(ranks, " ranks, batch ", batch));
      ExpectSame(Quantised(GetParam(), ranks), batch);
    }
  }
}

TEST_P(QuantisedExactnessTest, BudgetsDoNotShow) {
  for (const char* budget : {"50%", "12.5%", "2%"}) {
    for (const int32_t batch : {1, 8}) {
      SCOPED_TRACE(absl::StrCat(budget, ", batch ", batch));
      JobOptions options = Quantised(GetParam(), 2);
      options.expert_memory = budget;
      ExpectSame(options, batch);
    }
  }
}

TEST_P(QuantisedExactnessTest, EveryPathOfThisCpuGivesTheSameBits) {
  for (const CpuPath path : SupportedCpuPaths()) {
    SCOPED_TRACE(CpuPathName(path));
    JobOptions options = Quantised(GetParam());
    options.cpu_path = path;
    ExpectSame(options, 8);
  }
}

TEST_P(QuantisedExactnessTest, AnotherFormatIsAnotherModel) {
  const auto plain = Compute(BundledModel(), 1);
  ASSERT_TRUE(plain.ok()) << plain.status();

  EXPECT_FALSE(SameBits(*plain, Reference(GetParam())));
}

TEST_P(QuantisedExactnessTest, APackOfAnotherFormatIsNotTaken) {
  JobOptions options = BundledModel();
  options.pack_dir = Quantised(GetParam()).pack_dir;

  const auto logits = Compute(options, 1);

  ASSERT_TRUE(absl::IsNotFound(logits.status())) << logits.status();
  EXPECT_THAT(std::string(logits.status().message()),
              ::testing::HasSubstr("pack"));
}

TEST_P(QuantisedExactnessTest, OtherDenseMatricesAreAnotherModel) {
  JobOptions options = Quantised(GetParam());
  options.dense_weights = WeightFormat::kBf16;
  const auto logits = Compute(options, 1);
  ASSERT_TRUE(logits.ok()) << logits.status();

  EXPECT_FALSE(SameBits(*logits, Reference(GetParam())));
}

TEST_P(QuantisedExactnessTest, ADenseLayerGivesTheSameBitsOnEveryPath) {
  TempDir dir;
  WriteTinyModel(dir, {.dense_layer = 1, .vocab = 4096});
  JobOptions options = BundledModel();
  std::filesystem::copy(options.model_dir + "/tokenizer.json", dir.path());
  options.model_dir = dir.path();
  options.dense_weights = GetParam();
  options.cpu_path = CpuPath::kScalar;
  const auto reference = Compute(options, 1);
  options.dense_weights = WeightFormat::kBf16;
  const auto exact = Compute(options, 1);
  ASSERT_TRUE(reference.ok() && exact.ok()) << reference.status();
  EXPECT_LT(RelativeError(*reference, *exact), 0.2);

  options.dense_weights = GetParam();
  for (const CpuPath path : SupportedCpuPaths()) {
    options.cpu_path = path;
    const auto logits = Compute(options, 3);
    ASSERT_TRUE(logits.ok()) << logits.status();
    EXPECT_TRUE(SameBits(*logits, *reference)) << CpuPathName(path);
  }
}

TEST_P(QuantisedExactnessTest, WithoutItsPackTheJobEndsWithTheRemedy) {
  JobOptions options = BundledModel(2);
  options.weights = GetParam();

  const auto logits = Compute(options, 1);

  ASSERT_TRUE(absl::IsNotFound(logits.status())) << logits.status();
  EXPECT_THAT(std::string(logits.status().message()),
              ::testing::HasSubstr("portolan pack --quantize"));
}

}  // namespace
}  // namespace portolan
