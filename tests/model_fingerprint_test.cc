#include <gtest/gtest.h>

#include <fstream>
#include <set>

#include "runtime/model/checkpoint/fingerprint.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

uint64_t FingerprintOf(const TempDir& dir) {
  const auto config = LoadModelConfig(dir.path());
  const auto checkpoint = Checkpoint::Open(dir.path());
  PORTOLAN_CHECK(config.ok() && checkpoint.ok());
  return ModelFingerprint(*config, **checkpoint).value();
}

TEST(ModelFingerprintTest, DoesNotDependOnTheDirectory) {
  const TempDir a, b;
  WriteTinyModel(a, {});
  WriteTinyModel(b, {});

  EXPECT_EQ(FingerprintOf(a), FingerprintOf(b));
}

// Pinned: packs and histories on disk name it, so it may change only together
// with the version in fingerprint.cc.
TEST(ModelFingerprintTest, IsStable) {
  const TempDir dir;
  WriteTinyModel(dir, {});

  EXPECT_EQ(FingerprintOf(dir), 9743369405569278416u);
}

TEST(ModelFingerprintTest, TellsLayoutsDtypesAndConfigsApart) {
  std::set<uint64_t> seen;
  const TinyModel models[] = {{},
                              {.mixtral = true},
                              {.fused = true},
                              {.tied = true},
                              {.dtype = "F16"},
                              {.dtype = "F32"},
                              {.num_experts = 4}};
  for (const TinyModel& model : models) {
    const TempDir dir;
    WriteTinyModel(dir, model);
    seen.insert(FingerprintOf(dir));
  }
  const TempDir sharded;
  WriteTinyModel(sharded, {}, 2);
  seen.insert(FingerprintOf(sharded));

  EXPECT_EQ(seen.size(), std::size(models) + 1);
}

TEST(ModelFingerprintTest, SeesAnEpsilonOrANormRuleThatChanged) {
  const TempDir dir;
  WriteTinyModel(dir, {});
  const uint64_t before = FingerprintOf(dir);
  nlohmann::json config = TinyConfig({});

  config["norm_topk_prob"] = true;
  dir.Write("config.json", config.dump());
  const uint64_t renormalised = FingerprintOf(dir);
  config["rms_norm_eps"] = 2e-5;
  dir.Write("config.json", config.dump());
  const uint64_t other_eps = FingerprintOf(dir);

  EXPECT_NE(before, renormalised);
  EXPECT_NE(renormalised, other_eps);
}

TEST(ModelFingerprintTest, SeesOtherWeightsOfTheSameShape) {
  const TempDir dir;
  WriteTinyModel(dir, {});
  const uint64_t before = FingerprintOf(dir);
  std::vector<TestTensor> tensors = TinyTensors({});
  for (char& byte : tensors.back().bytes) byte = static_cast<char>(~byte);
  dir.Write("model.safetensors", SafetensorsFile(tensors));

  EXPECT_NE(FingerprintOf(dir), before);
}

TEST(ModelFingerprintTest, ReadsLittleAndNothingAsExpertBytes) {
  const auto config = LoadModelConfig(PORTOLAN_SOURCE_DIR "/models/tiny-moe");
  const auto checkpoint =
      Checkpoint::Open(PORTOLAN_SOURCE_DIR "/models/tiny-moe");
  ASSERT_TRUE(config.ok() && checkpoint.ok());

  ASSERT_TRUE(ModelFingerprint(*config, **checkpoint).ok());

  EXPECT_LE((*checkpoint)->bytes_read().metadata, 256u * 64u);
  EXPECT_EQ((*checkpoint)->bytes_read().expert, 0u);
  EXPECT_EQ((*checkpoint)->bytes_read().dense, 0u);
}

}  // namespace
}  // namespace portolan
