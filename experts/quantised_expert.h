#pragma once

#include <array>
#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "experts/expert_shape.h"
#include "experts/expert_source.h"
#include "runtime/base/aligned_buffer.h"
#include "runtime/base/ids.h"
#include "runtime/kernels/quantise.h"
#include "runtime/kernels/weight_format.h"

namespace portolan {

// What quantising an expert's matrices cost.
struct ExpertQuantisation {
  ExpertId id;
  QuantisationError gate, up, down;
};

// Quantises an expert as it lies in a slot (expert_slot.h): `from` holds
// ExpertSlotBytes(shape), `to` receives ExpertSlotBytes(shape, format).
// Errors: kInvalidArgument naming the matrix whose weights do not fit the
// format. Thread-safe.
absl::Status QuantiseExpert(const ExpertShape& shape, WeightFormat format,
                            const std::byte* from, std::byte* to,
                            ExpertQuantisation& error);

// Quantises each expert of another source as it is read, and keeps the errors.
//
// Unlike other sources thread-compatible only: a packer reads one by one.
class QuantisingSource final : public ExpertSource {
 public:
  // `source` gives bf16 slots and must outlive the object. Aborts if the system
  // has no memory for one of them.
  QuantisingSource(const ExpertShape& shape, WeightFormat format,
                   ExpertSource& source);

  // Errors: those of `source` and QuantiseExpert(), naming the expert.
  absl::Status Read(ExpertId id, std::span<std::byte> slot) override;

  // In the order of reading; experts of zeros, which stand for layers without
  // any, are left out.
  const std::vector<ExpertQuantisation>& errors() const { return errors_; }

 private:
  const ExpertShape shape_;
  const WeightFormat format_;
  ExpertSource& source_;
  AlignedBuffer slot_;
  std::vector<ExpertQuantisation> errors_;
};

// The errors as a table for people: one line per layer and matrix, and the
// tensor that lost most.
std::string FormatQuantisation(std::span<const ExpertQuantisation> errors);

// As JSON: every tensor.
std::string QuantisationJson(WeightFormat format,
                             std::span<const ExpertQuantisation> errors);

}  // namespace portolan
