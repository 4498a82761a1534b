#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <memory>
#include <string>
#include <vector>

#include "experts/expert_slot.h"
#include "experts/quantised_expert.h"
#include "runtime/kernels/quantise.h"
#include "runtime/model/checkpoint/dense_weights.h"
#include "tests/tiny_checkpoint.h"

namespace portolan {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

// A tiny model on disk and its dense weights.
struct Loaded {
  explicit Loaded(const TinyModel& model, size_t num_shards = 1) {
    WriteTinyModel(dir, model, num_shards);
    config = LoadModelConfig(dir.path()).value();
    checkpoint = Checkpoint::Open(dir.path()).value();
  }

  absl::StatusOr<DenseWeights> Load(WeightFormat format = WeightFormat::kBf16) {
    return DenseWeights::Load(
        config, *checkpoint,
        [this](int64_t bytes_done, int64_t bytes_total) {
          done.push_back(bytes_done);
          total = bytes_total;
        },
        [this](const std::string& text) { notices.push_back(text); }, format);
  }

  TempDir dir;
  ModelConfig config;
  std::unique_ptr<Checkpoint> checkpoint;
  std::vector<int64_t> done;
  int64_t total = 0;
  std::vector<std::string> notices;
};

std::vector<float> Floats(const std::string& name, int64_t count) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(TinyWeight(name, i));
  return values;
}

// The elements of a packed matrix, row-major, by the layout's definition.
std::vector<Bf16> Unpacked(const PackedMatrix& matrix) {
  const auto* data = static_cast<const Bf16*>(matrix.data);
  std::vector<Bf16> values;
  for (int64_t n = 0; n < matrix.n; ++n) {
    for (int64_t k = 0; k < matrix.k; ++k) {
      const int64_t tile =
          n / kTileOutputs * NumInputBlocks(matrix.k) + k / kTileInputs;
      values.push_back(
          data[tile * kTileElements +
               (k % kTileInputs / 2 * kTileOutputs + n % kTileOutputs) * 2 +
               k % 2]);
    }
  }
  return values;
}

void ExpectMatrix(const PackedMatrix& matrix, const std::string& name,
                  int64_t rows, int64_t cols) {
  EXPECT_EQ(matrix.n, rows);
  EXPECT_EQ(matrix.k, cols);
  EXPECT_THAT(Unpacked(matrix),
              ElementsAreArray(TinyWeights(name, rows * cols)))
      << name;
}

class DenseWeightsDtypeTest : public testing::TestWithParam<const char*> {};

TEST_P(DenseWeightsDtypeTest, HoldsEveryTensorPackedAndRounded) {
  const TinyModel model{.bias = true, .dtype = GetParam()};
  Loaded loaded(model, /*num_shards=*/2);

  const auto weights = loaded.Load();

  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_THAT(weights->embedding,
              ElementsAreArray(TinyWeights("model.embed_tokens.weight",
                                           model.vocab * model.hidden)));
  EXPECT_THAT(weights->final_norm,
              ElementsAreArray(Floats("model.norm.weight", model.hidden)));
  ExpectMatrix(weights->lm_head, "lm_head.weight", model.vocab, model.hidden);
  const LayerWeights& layer = weights->layers[1];
  const std::string prefix = "model.layers.1.";
  const std::string attention = prefix + "self_attn.";
  ExpectMatrix(layer.q, attention + "q_proj.weight", 64, model.hidden);
  ExpectMatrix(layer.k, attention + "k_proj.weight", 32, model.hidden);
  ExpectMatrix(layer.v, attention + "v_proj.weight", 32, model.hidden);
  ExpectMatrix(layer.o, attention + "o_proj.weight", model.hidden, 64);
  ExpectMatrix(layer.gate, prefix + "mlp.gate.weight", model.num_experts,
               model.hidden);
  EXPECT_THAT(layer.q_bias,
              ElementsAreArray(Floats(attention + "q_proj.bias", 64)));
  EXPECT_THAT(layer.o_bias, ElementsAreArray(Floats(attention + "o_proj.bias",
                                                    model.hidden)));
  EXPECT_THAT(layer.k_norm,
              ElementsAreArray(Floats(attention + "k_norm.weight", 16)));
  EXPECT_THAT(layer.post_attention_norm,
              ElementsAreArray(Floats(
                  prefix + "post_attention_layernorm.weight", model.hidden)));
  EXPECT_EQ(layer.dense_mlp, nullptr);
}

INSTANTIATE_TEST_SUITE_P(All, DenseWeightsDtypeTest,
                         testing::Values("BF16", "F16", "F32"));

TEST(DenseWeightsTest, MixtralHasNeitherBiasNorHeadNorms) {
  Loaded loaded({.mixtral = true});

  const auto weights = loaded.Load();

  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_THAT(weights->layers[0].q_norm, IsEmpty());
  EXPECT_THAT(weights->layers[0].q_bias, IsEmpty());
  ExpectMatrix(weights->layers[0].gate,
               "model.layers.0.block_sparse_moe.gate.weight", 3, 48);
}

TEST(DenseWeightsTest, TiedEmbeddingsAreAlsoTheHead) {
  Loaded loaded({.tied = true});

  const auto weights = loaded.Load();

  ASSERT_TRUE(weights.ok()) << weights.status();
  ExpectMatrix(weights->lm_head, "model.embed_tokens.weight", 50, 48);
  EXPECT_THAT(weights->Embedding(3),
              ElementsAreArray(TinyWeights("model.embed_tokens.weight", 48,
                                           /*first=*/3 * 48)));
}

TEST(DenseWeightsTest, ADenseLayerIsOneExpertSlot) {
  const TinyModel model{.dense_layer = 1, .dtype = "F32"};
  Loaded loaded(model);

  const auto weights = loaded.Load();

  ASSERT_TRUE(weights.ok()) << weights.status();
  const ExpertShape shape = DenseMlpShape(loaded.config);
  const int64_t size = model.hidden * model.dense_intermediate;
  const std::string mlp = "model.layers.1.mlp.";
  std::vector<std::byte> wanted(static_cast<size_t>(ExpertSlotBytes(shape)));
  PackExpert(shape, TinyWeights(mlp + "gate_proj.weight", size).data(),
             TinyWeights(mlp + "up_proj.weight", size).data(),
             TinyWeights(mlp + "down_proj.weight", size).data(), wanted.data());
  EXPECT_EQ(
      std::memcmp(weights->layers[1].dense_mlp, wanted.data(), wanted.size()),
      0);
  EXPECT_EQ(weights->layers[1].gate.data, nullptr);
  EXPECT_EQ(weights->layers[0].dense_mlp, nullptr);
}

TEST(DenseWeightsTest, ADenseLayerIsQuantisedAsAnExpertIs) {
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    Loaded loaded({.dense_layer = 1}, /*num_shards=*/3);
    const auto exact = loaded.Load();
    const auto quantised = loaded.Load(format);
    ASSERT_TRUE(exact.ok() && quantised.ok()) << quantised.status();

    const ExpertShape shape = DenseMlpShape(loaded.config);
    std::vector<std::byte> wanted(
        static_cast<size_t>(ExpertSlotBytes(shape, format)));
    ExpertQuantisation error;
    ASSERT_TRUE(QuantiseExpert(shape, format, exact->layers[1].dense_mlp,
                               wanted.data(), error)
                    .ok());
    EXPECT_EQ(std::memcmp(quantised->layers[1].dense_mlp, wanted.data(),
                          wanted.size()),
              0);
    EXPECT_EQ(quantised->format, format);
    EXPECT_EQ(quantised->bytes(), DenseWeights::BytesNeeded(
                                      loaded.config, *loaded.checkpoint, format)
                                      .value());
  }
}

// A matrix above the staging buffer's 8 MiB is read in bands.
TEST(DenseWeightsTest, LargeMatricesAreReadInBands) {
  const TinyModel model{.tied = false,
                        .dtype = "F32",
                        .num_layers = 1,
                        .hidden = 48,
                        .vocab = 50021};
  Loaded loaded(model);

  const auto weights = loaded.Load();

  ASSERT_TRUE(weights.ok()) << weights.status();
  EXPECT_EQ(Unpacked(weights->lm_head),
            TinyWeights("lm_head.weight", model.vocab * model.hidden));
  const auto wanted =
      TinyWeights("model.embed_tokens.weight", model.vocab * model.hidden);
  EXPECT_EQ(
      std::vector<Bf16>(weights->embedding.begin(), weights->embedding.end()),
      wanted);
}

// What quantising the tiles of `exact` gives.
void ExpectQuantised(const PackedMatrix& actual, const PackedMatrix& exact,
                     WeightFormat format) {
  ASSERT_EQ(actual.format, format);
  const int64_t tiles = NumOutputBlocks(exact.n) * NumInputBlocks(exact.k);
  std::vector<std::byte> expected(
      static_cast<size_t>(PackedBytes(exact.n, exact.k, format)));
  QuantisationError error;
  ASSERT_TRUE(QuantiseTiles(format, static_cast<const Bf16*>(exact.data), tiles,
                            expected.data(), error));
  EXPECT_EQ(std::memcmp(actual.data, expected.data(), expected.size()), 0);
}

TEST(DenseWeightsTest, QuantisesAttentionAndHeadButNeverTheGate) {
  for (const WeightFormat format : {WeightFormat::kInt8, WeightFormat::kInt4}) {
    for (const bool tied : {false, true}) {
      Loaded loaded({.tied = tied});
      const auto exact = loaded.Load();
      const auto quantised = loaded.Load(format);
      ASSERT_TRUE(exact.ok() && quantised.ok()) << quantised.status();

      ExpectQuantised(quantised->lm_head, exact->lm_head, format);
      for (size_t i = 0; i < exact->layers.size(); ++i) {
        const LayerWeights& actual = quantised->layers[i];
        const LayerWeights& expected = exact->layers[i];
        ExpectQuantised(actual.q, expected.q, format);
        ExpectQuantised(actual.k, expected.k, format);
        ExpectQuantised(actual.v, expected.v, format);
        ExpectQuantised(actual.o, expected.o, format);
        EXPECT_EQ(actual.gate.format, WeightFormat::kBf16);
      }
      EXPECT_EQ(
          quantised->bytes(),
          DenseWeights::BytesNeeded(loaded.config, *loaded.checkpoint, format)
              .value());
      EXPECT_LT(quantised->bytes(), exact->bytes());
    }
  }
}

TEST(DenseWeightsTest, ReadsEachDenseByteOnceInFileOrderAndNoExpert) {
  std::vector<uint64_t> offsets;
  const std::string dir = PORTOLAN_SOURCE_DIR "/models/tiny-moe";
  const auto config = LoadModelConfig(dir);
  const auto checkpoint = Checkpoint::Open(
      dir, [&](const TensorExtent& range, ReadPurpose purpose) {
        EXPECT_EQ(purpose, ReadPurpose::kDense);
        offsets.push_back(range.offset);
      });
  ASSERT_TRUE(config.ok() && checkpoint.ok());

  int64_t total = 0;
  const auto weights = DenseWeights::Load(
      *config, **checkpoint,
      [&](int64_t, int64_t bytes_total) { total = bytes_total; });

  ASSERT_TRUE(weights.ok()) << weights.status();
  uint64_t dense = 0;
  for (const TensorInfo& tensor : (*checkpoint)->tensors()) {
    if (tensor.name.find(".experts.") == std::string::npos) {
      dense += tensor.bytes;
    }
  }
  EXPECT_EQ((*checkpoint)->bytes_read().dense, dense);
  EXPECT_EQ(total, static_cast<int64_t>(dense));
  EXPECT_TRUE(std::is_sorted(offsets.begin(), offsets.end()));
}

TEST(DenseWeightsTest, ProgressRisesToTheTotal) {
  Loaded loaded(TinyModel{});

  ASSERT_TRUE(loaded.Load().ok());

  EXPECT_TRUE(std::is_sorted(loaded.done.begin(), loaded.done.end()));
  EXPECT_EQ(loaded.done.back(), loaded.total);
  EXPECT_GT(loaded.total, 0);
}

TEST(DenseWeightsTest, SaysOnceThatWeightsAreRounded) {
  Loaded bf16({.dtype = "BF16"}), f16({.dtype = "F16"});

  ASSERT_TRUE(bf16.Load().ok());
  ASSERT_TRUE(f16.Load().ok());

  EXPECT_THAT(bf16.notices, IsEmpty());
  EXPECT_THAT(f16.notices, ElementsAre(AllOf(HasSubstr("F16"),
                                             HasSubstr("rounded to bf16"))));
}

TEST(DenseWeightsTest, AMissingTensorIsNamedBeforeAnythingIsRead) {
  Loaded loaded({.tied = true});
  loaded.config.tie_embeddings = false;

  const auto weights = loaded.Load();

  EXPECT_TRUE(absl::IsNotFound(weights.status()));
  EXPECT_THAT(
      std::string(weights.status().message()),
      AllOf(HasSubstr("lm_head.weight"), HasSubstr("model.safetensors")));
  EXPECT_EQ(loaded.checkpoint->bytes_read().dense, 0u);
}

TEST(DenseWeightsTest, AWrongShapeIsNamedWithBoth) {
  Loaded loaded(TinyModel{});
  loaded.config.num_kv_heads = 4;

  EXPECT_THAT(
      std::string(loaded.Load().status().message()),
      AllOf(HasSubstr("self_attn.k_proj.weight"),
            HasSubstr("wanted shape [64, 48]"), HasSubstr("found [32, 48]")));
}

TEST(DenseWeightsTest, ATruncationAfterOpeningIsDataLossAndNamed) {
  Loaded loaded(TinyModel{});
  std::filesystem::resize_file(loaded.dir.File("model.safetensors"), 9000);

  const absl::Status status = loaded.Load().status();

  EXPECT_TRUE(absl::IsDataLoss(status));
  EXPECT_THAT(std::string(status.message()),
              AllOf(HasSubstr("tensor "), HasSubstr("offset")));
}

}  // namespace
}  // namespace portolan
