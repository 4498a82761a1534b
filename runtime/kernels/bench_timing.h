#pragma once

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <vector>

#include "absl/functional/function_ref.h"

// Private to the benches of kernels.
namespace portolan {

// Seconds, of the steady clock.
inline double Now() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

inline double Median(std::vector<double>& values) {
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// Median seconds of a call: at least three calls, then until time is up.
inline double MedianSeconds(double budget, absl::FunctionRef<void()> call) {
  call();
  std::vector<double> seconds;
  const double end = Now() + budget;
  while (seconds.size() < 3 || (Now() < end && seconds.size() < 100'000)) {
    const double start = Now();
    call();
    seconds.push_back(Now() - start);
  }
  return Median(seconds);
}

}  // namespace portolan
