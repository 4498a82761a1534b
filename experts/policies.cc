#include "experts/policies.h"

#include <algorithm>
#include <array>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "experts/history.h"
#include "experts/policy_adaptive.h"
#include "experts/policy_baselines.h"
#include "experts/policy_lru.h"
#include "experts/predictor_adaptive.h"
#include "experts/predictor_gate.h"
#include "experts/predictor_maps.h"
#include "runtime/base/check.h"

namespace portolan {
namespace {

constexpr std::array<std::string_view, 9> kNames = {
    "all-layer", "lru", "lfu",  "gate-1",  "eam",
    "gate-2",    "pin", "fmoe", "adaptive"};

}  // namespace

std::span<const std::string_view> PolicyNames() { return kNames; }

absl::Status CheckPolicyName(std::string_view name) {
  if (std::ranges::find(kNames, name) != kNames.end()) return absl::OkStatus();
  std::string names;
  for (const std::string_view known : kNames) {
    absl::StrAppend(&names, names.empty() ? "" : ", ",
                    absl::string_view(known.data(), known.size()));
  }
  return absl::InvalidArgumentError(
      absl::StrCat("--policy ", absl::string_view(name.data(), name.size()),
                   ": there are ", names, "; oracle in replay"));
}

std::unique_ptr<CachePolicy> MakePolicy(std::string_view name,
                                        const PolicyShape& shape,
                                        const History* history) {
  if (name == "all-layer") return MakeAllLayerPolicy(shape);
  if (name == "lru") return MakeLruPolicy(shape);
  if (name == "lfu") return MakeLfuPolicy(shape);
  if (name == "gate-1") return MakeGate1Policy(shape);
  if (name == "eam") return MakeEamPolicy(shape);
  if (name == "gate-2") return MakeGate2Policy(shape);
  if (name == "pin") return MakePinPolicy(shape, history);
  if (name == "fmoe") return MakeFmoePolicy(shape);
  PORTOLAN_CHECK(name == "adaptive");
  return MakeAdaptivePolicy(shape);
}

std::unique_ptr<Predictor> MakePredictor(std::string_view name,
                                         const PredictorShape& shape,
                                         const PolicyOptions& options,
                                         History& history) {
  if (name == "gate-1") return MakeGatePredictor(shape, 1);
  if (name == "gate-2") return MakeGatePredictor(shape, 2);
  if (name == "eam") return MakeEamPredictor(shape, options.distance, history);
  if (name == "fmoe") {
    return MakeFmoePredictor(shape, options.distance, history);
  }
  if (name == "adaptive") return MakeAdaptivePredictor(shape, history);
  return nullptr;
}

}  // namespace portolan
