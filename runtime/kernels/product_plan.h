#pragma once

#include <cstdint>
#include <span>
#include <vector>

namespace portolan {

// One matrix product of a parallel region, in units of tiles.
struct ProductShape {
  int64_t rows = 0;
  int64_t blocks = 0;    // blocks of 16 outputs
  int64_t k_blocks = 0;  // blocks of 32 inputs
};

// A rectangle of outputs of one product; K is never split.
struct ProductTask {
  int32_t product = 0;
  int32_t block_begin = 0;
  int32_t block_end = 0;
  int32_t row_begin = 0;
  int32_t row_end = 0;
};

// Cuts the products into tasks that `num_threads` threads can share evenly:
// between blocks of outputs, in pairs, so that weights are read once, but not
// so finely that preparing many rows for each task would count; between rows
// where they are more than a thread prepares at a time, or the blocks too few.
// Every output lies in exactly one task. Replaces the contents of `tasks`. Work
// that is not worth waking another thread becomes one task a product.
//
// Returns true if the tasks are worth a parallel region. Pure.
bool PlanProducts(std::span<const ProductShape> products, int num_threads,
                  std::vector<ProductTask>& tasks);

}  // namespace portolan
