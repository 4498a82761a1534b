#include "experts/expert_ffn.h"

#include "runtime/base/check.h"

namespace portolan {

ExpertFfn::ExpertFfn(const ExpertShape& shape, ActivationDtype dtype,
                     Kernels& kernels, int64_t max_rows, Profile* profile,
                     WeightFormat format)
    : shape_(shape),
      dtype_(dtype),
      format_(format),
      kernels_(kernels),
      max_rows_(max_rows),
      profile_(profile) {
  auto h = AlignedBuffer::Allocate(static_cast<size_t>(
      max_rows * PaddedCols(shape.intermediate) * BytesOf(dtype)));
  PORTOLAN_CHECK(h.ok());
  h_ = *std::move(h);
  x_rows_.resize(static_cast<size_t>(max_rows));
}

void ExpertFfn::Run(std::span<const Work> work, const ActivationView& x,
                    std::span<const int32_t> row_of, float* out,
                    int64_t out_stride) {
  PORTOLAN_CHECK(x.dtype == dtype_ && x.cols == shape_.hidden);
  PORTOLAN_CHECK(static_cast<int64_t>(row_of.size()) <= max_rows_);
  const ActivationView h = {.data = h_.data(),
                            .dtype = dtype_,
                            .rows = static_cast<int64_t>(row_of.size()),
                            .cols = shape_.intermediate,
                            .stride = PaddedCols(shape_.intermediate)};
  groups_.clear();
  size_t used = 0;
  for (const Work& expert : work) {
    const size_t rows = expert.selections.size();
    PORTOLAN_CHECK(used + rows <= x_rows_.size());
    const std::span<int32_t> x_rows = std::span(x_rows_).subspan(used, rows);
    for (size_t i = 0; i < rows; ++i) {
      x_rows[i] = row_of[static_cast<size_t>(expert.selections[i])];
    }
    used += rows;
    groups_.push_back({.w = {.data = expert.slot,
                             .n = ExpertGateUpOutputs(shape_),
                             .k = shape_.hidden,
                             .format = format_},
                       .x_rows = x_rows,
                       .out_rows = expert.selections});
  }
  {
    const ProfileScope zone(profile_, Zone::kGateUp);
    kernels_.GroupedSwiGlu(x, groups_, h);
  }
  const ProfileScope zone(profile_, Zone::kDown);
  for (size_t i = 0; i < work.size(); ++i) {
    groups_[i].w = {.data = work[i].slot + ExpertDownOffset(shape_, format_),
                    .n = shape_.hidden,
                    .k = shape_.intermediate,
                    .format = format_};
    groups_[i].x_rows = work[i].selections;
  }
  kernels_.GroupedLinear(h, groups_, out, out_stride);
}

}  // namespace portolan
