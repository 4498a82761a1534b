#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "runtime/base/check.h"

namespace portolan {

// A row-major [rows, cols] matrix that somebody else owns.
template <typename T>
class MatrixView {
 public:
  MatrixView() = default;

  // Requires data.size() == rows * cols.
  MatrixView(std::span<T> data, int64_t rows, int64_t cols)
      : data_(data), rows_(rows), cols_(cols) {
    PORTOLAN_CHECK(static_cast<int64_t>(data.size()) == rows * cols);
  }

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  std::span<T> data() const { return data_; }

  std::span<T> Row(int64_t row) const {
    return data_.subspan(static_cast<size_t>(row * cols_),
                         static_cast<size_t>(cols_));
  }

 private:
  std::span<T> data_;
  int64_t rows_ = 0;
  int64_t cols_ = 0;
};

}  // namespace portolan
