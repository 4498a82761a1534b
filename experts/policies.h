#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string_view>

#include "absl/status/statusor.h"
#include "experts/policy.h"
#include "experts/predictor.h"

namespace portolan {

class History;

// The policies that --policy takes, in the order of algorithms.md section 4.
// `oracle` is one of them only in replay, which makes it itself.
std::span<const std::string_view> PolicyNames();

// Errors: kInvalidArgument naming --policy and the names there are.
absl::Status CheckPolicyName(std::string_view name);

// Of predictors.
struct PolicyOptions {
  int32_t distance = 3;  // d: layers ahead that hints reach, >= 1
};

// The owner's side. Requires CheckPolicyName(name). `history` (may be null)
// gives `pin` its profile; it is read here only.
std::unique_ptr<CachePolicy> MakePolicy(std::string_view name,
                                        const PolicyShape& shape,
                                        const History* history);

// The source's side, or null if the policy foretells nothing. `history` must
// outlive it and is what it learns into.
std::unique_ptr<Predictor> MakePredictor(std::string_view name,
                                         const PredictorShape& shape,
                                         const PolicyOptions& options,
                                         History& history);

}  // namespace portolan
