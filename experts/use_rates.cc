#include "experts/use_rates.h"

#include <cmath>

namespace portolan {
namespace {

// Share that the past keeps per token.
constexpr float kRecentMemory = 0.87f;
constexpr float kMeanMemory = 0.98f;

}  // namespace

// Shares that the past keeps over a step.
struct UseRates::Memory {
  explicit Memory(int64_t num_tokens)
      : recent(std::pow(kRecentMemory, static_cast<float>(num_tokens))),
        mean(std::pow(kMeanMemory, static_cast<float>(num_tokens))) {}

  float recent;
  float mean;
};

UseRates::UseRates(const PolicyShape& shape)
    : num_experts_(static_cast<size_t>(shape.num_experts)),
      recent_(shape.num_ids(), static_cast<float>(shape.top_k) /
                                   static_cast<float>(shape.num_experts)),
      mean_(recent_) {}

void UseRates::OnVisit(int32_t layer, std::span<const ExpertNeed> needs,
                       int64_t num_tokens) {
  const Memory keep(num_tokens);
  const size_t first = static_cast<size_t>(layer) * num_experts_;
  for (size_t i = first; i < first + num_experts_; ++i) {
    recent_[i] *= keep.recent;
    mean_[i] *= keep.mean;
  }
  Add(layer, needs, num_tokens, keep);
}

void UseRates::AddNeeds(int32_t layer, std::span<const ExpertNeed> needs,
                        int64_t num_tokens) {
  Add(layer, needs, num_tokens, Memory(num_tokens));
}

void UseRates::Add(int32_t layer, std::span<const ExpertNeed> needs,
                   int64_t num_tokens, const Memory& keep) {
  const auto tokens = static_cast<float>(num_tokens);
  const size_t first = static_cast<size_t>(layer) * num_experts_;
  for (const ExpertNeed& need : needs) {
    const size_t i = first + static_cast<size_t>(need.expert);
    const float share = static_cast<float>(need.num_rows) / tokens;
    recent_[i] += (1 - keep.recent) * share;
    mean_[i] += (1 - keep.mean) * share;
  }
}

}  // namespace portolan
