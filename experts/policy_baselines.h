#pragma once

#include <memory>

#include "experts/policy.h"

namespace portolan {

class History;

// Published policies re-implemented on the common mechanism, to be measured
// against (algorithms.md section 4). None weighs cost against gain: what is
// foretold is read. They differ in what they read and whom they evict.

// The whole next layer, layer after layer, cyclically; first in, first out.
// Source: DeepSpeed-Inference.
std::unique_ptr<CachePolicy> MakeAllLayerPolicy(const PolicyShape& shape);

// What the gate of the next layer says of the present hidden state; LRU inside
// each layer's share of the slots. With fewer slots than top_k for each layer:
// one global LRU (notice()). Source: Mixtral-Offloading.
std::unique_ptr<CachePolicy> MakeGate1Policy(const PolicyShape& shape);

// The same two layers ahead; global LRU. Source: ProMoE's stride.
std::unique_ptr<CachePolicy> MakeGate2Policy(const PolicyShape& shape);

// Activation ratios of the nearest stored sequence, weighted down by distance;
// evicts the smallest activation ratio. Source: MoE-Infinity.
std::unique_ptr<CachePolicy> MakeEamPolicy(const PolicyShape& shape);

// The hottest experts of a profile stay in three quarters of the slots once
// read, the rest is LRU. Without a profile: LRU (notice()).
std::unique_ptr<CachePolicy> MakePinPolicy(const PolicyShape& shape,
                                           const History* history);

// Expert maps as published: reads what the matched maps select, by probability
// over distance; evicts the smallest probability * accesses.
// Source: fMoE (arXiv 2502.05370); algorithms.md section 1.
std::unique_ptr<CachePolicy> MakeFmoePolicy(const PolicyShape& shape);

}  // namespace portolan
