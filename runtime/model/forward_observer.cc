#include "runtime/model/forward_observer.h"

#include <algorithm>

namespace portolan {

int ObserverChain::look_ahead() const {
  int most = 0;
  for (const ForwardObserver* observer : observers_) {
    most = std::max(most, observer->look_ahead());
  }
  return most;
}

void ObserverChain::OnEmbedding(std::span<const StepToken> tokens,
                                MatrixView<const float> embeddings) {
  for (ForwardObserver* observer : observers_) {
    observer->OnEmbedding(tokens, embeddings);
  }
}

std::span<const Fp16> ObserverChain::step_hints() const {
  for (const ForwardObserver* observer : observers_) {
    const std::span<const Fp16> hints = observer->step_hints();
    if (!hints.empty()) return hints;
  }
  return {};
}

std::span<const Fp16> ObserverChain::OnGate(const GateOutput& gate) {
  std::span<const Fp16> hints;
  for (ForwardObserver* observer : observers_) {
    const std::span<const Fp16> given = observer->OnGate(gate);
    if (!given.empty()) hints = given;
  }
  return hints;
}

void ObserverChain::OnLayerEnd(int32_t layer) {
  for (ForwardObserver* observer : observers_) observer->OnLayerEnd(layer);
}

void ObserverChain::OnStepEnd() {
  for (ForwardObserver* observer : observers_) observer->OnStepEnd();
}

void ObserverChain::OnSequenceEnd(int64_t sequence) {
  for (ForwardObserver* observer : observers_) {
    observer->OnSequenceEnd(sequence);
  }
}

}  // namespace portolan
