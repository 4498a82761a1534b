// That what is said of memory before it is taken is what is then taken.

#include <gtest/gtest.h>
#include <malloc.h>

#include <atomic>
#include <cstdlib>
#include <memory>
#include <new>
#include <vector>

#include "experts/history.h"
#include "experts/policies.h"
#include "experts/predictor_memory.h"

namespace {

std::atomic<int64_t> g_live{0};

void* Count(void* memory) {
  if (memory == nullptr) throw std::bad_alloc();
  g_live += static_cast<int64_t>(malloc_usable_size(memory));
  return memory;
}

void Release(void* memory) {
  g_live -= static_cast<int64_t>(malloc_usable_size(memory));
  std::free(memory);
}

}  // namespace

void* operator new(size_t size) { return Count(std::malloc(size)); }
void* operator new(size_t size, std::align_val_t alignment) {
  const auto unit = static_cast<size_t>(alignment);
  return Count(std::aligned_alloc(unit, (size + unit - 1) / unit * unit));
}
void operator delete(void* memory) noexcept { Release(memory); }
void operator delete(void* memory, size_t) noexcept { Release(memory); }
void operator delete(void* memory, std::align_val_t) noexcept {
  Release(memory);
}
void operator delete(void* memory, size_t, std::align_val_t) noexcept {
  Release(memory);
}

namespace portolan {
namespace {

HistoryShape Shape(int32_t capacity, MapFormat format) {
  return {.num_layers = 6,
          .num_experts = 40,
          .top_k = 3,
          .hidden = 100,
          .fingerprint = 1,
          .iterations = capacity,
          .sequences = capacity,
          .token_ids = 500,
          .format = format};
}

TEST(HistoryMemoryTest, AHistoryTakesWhatIsSaidOfItsShape) {
  for (const MapFormat format : {MapFormat::kExact, MapFormat::kCompact}) {
    for (const int32_t capacity : {100, 5000}) {
      const HistoryShape shape = Shape(capacity, format);
      const int64_t before = g_live;

      const auto history = std::make_unique<History>(shape);

      const auto taken = static_cast<double>(g_live - before);
      EXPECT_NEAR(taken, static_cast<double>(HistoryBytes(shape)),
                  0.01 * taken + (16 << 10))
          << MapFormatName(format) << " " << capacity;
    }
  }
}

constexpr PredictorShape kPredictor{.num_layers = 6,
                                    .num_experts = 40,
                                    .top_k = 3,
                                    .hidden = 100,
                                    .max_step_tokens = 64};
constexpr int32_t kSequences = 8;

// A step as large as any, of as many sequences as may live.
void PlayFullStep(Predictor& predictor) {
  const std::vector<float> embeddings(
      static_cast<size_t>(kPredictor.max_step_tokens * kPredictor.hidden),
      0.5f);
  const std::vector<int32_t> ids(
      static_cast<size_t>(kPredictor.max_step_tokens / kSequences), 7);
  std::vector<SequenceSlice> slices;
  for (int32_t i = 0; i < kSequences; ++i) {
    slices.push_back({.sequence = i, .first_position = 0, .token_ids = ids});
  }
  predictor.BeginStep({.slices = slices,
                       .embeddings = {embeddings, kPredictor.max_step_tokens,
                                      kPredictor.hidden}});
  const std::vector<float> probabilities(
      static_cast<size_t>(kPredictor.max_step_tokens * kPredictor.num_experts),
      1.0f / static_cast<float>(kPredictor.num_experts));
  const MatrixView<const float> rows{probabilities, kPredictor.max_step_tokens,
                                     kPredictor.num_experts};
  const std::vector<int32_t> experts(
      static_cast<size_t>(kPredictor.max_step_tokens * kPredictor.top_k), 1);
  for (int32_t layer = 0; layer < kPredictor.num_layers; ++layer) {
    const auto ahead = [&](int32_t distance) {
      return layer + distance < kPredictor.num_layers
                 ? rows
                 : MatrixView<const float>{};
    };
    predictor.Observe({.layer = layer,
                       .probabilities = rows,
                       .experts = experts,
                       .ahead1 = ahead(1),
                       .ahead2 = ahead(2)});
  }
  predictor.EndStep();
}

TEST(PredictorMemoryTest, NoPredictorTakesMoreThanIsSaidOfItNorMuchLess) {
  const HistoryShape shape = Shape(2000, MapFormat::kExact);
  History history(shape);
  for (const std::string_view policy : PolicyNames()) {
    SCOPED_TRACE(policy);
    const int64_t said = PredictorBytes(policy, kPredictor, shape, kSequences);
    const int64_t before = g_live;

    const auto predictor = MakePredictor(policy, kPredictor, {}, history);
    if (predictor != nullptr) PlayFullStep(*predictor);

    const int64_t taken = g_live - before;
    EXPECT_LE(taken, said + (8 << 10));
    EXPECT_GE(taken, said - said / 5);
  }
}

}  // namespace
}  // namespace portolan
