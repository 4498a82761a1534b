#include "experts/use_rates.h"

#include <cmath>

namespace portolan {
namespace {

// Share that the past keeps per token.
constexpr float kRecentMemory = 0.87f;
constexpr float kMeanMemory = 0.98f;

}  // namespace

UseRates::UseRates(const PolicyShape& shape)
    : num_experts_(static_cast<size_t>(shape.num_experts)),
      recent_(shape.num_ids(), static_cast<float>(shape.top_k) /
                                   static_cast<float>(shape.num_experts)),
      mean_(recent_) {}

void UseRates::OnVisit(int32_t layer, std::span<const ExpertNeed> needs,
                       int64_t num_tokens) {
  const auto tokens = static_cast<float>(num_tokens);
  const float keep_recent = std::pow(kRecentMemory, tokens);
  const float keep_mean = std::pow(kMeanMemory, tokens);
  const size_t first = static_cast<size_t>(layer) * num_experts_;
  for (size_t i = first; i < first + num_experts_; ++i) {
    recent_[i] *= keep_recent;
    mean_[i] *= keep_mean;
  }
  AddNeeds(layer, needs, num_tokens);
}

void UseRates::AddNeeds(int32_t layer, std::span<const ExpertNeed> needs,
                        int64_t num_tokens) {
  const auto tokens = static_cast<float>(num_tokens);
  const float keep_recent = std::pow(kRecentMemory, tokens);
  const float keep_mean = std::pow(kMeanMemory, tokens);
  const size_t first = static_cast<size_t>(layer) * num_experts_;
  for (const ExpertNeed& need : needs) {
    const size_t i = first + static_cast<size_t>(need.expert);
    const float share = static_cast<float>(need.num_rows) / tokens;
    recent_[i] += (1 - keep_recent) * share;
    mean_[i] += (1 - keep_mean) * share;
  }
}

}  // namespace portolan
