// How kernels of eight positions walk over a panel: four rows of weights at once, and what is left over one by one.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "bnncore/xnor_gemm.h"

namespace bitfleet::loops {

// Products of some rows with eight positions, of which `some` are stored.
using RowsByEight = void (*)(const uint64_t* columns, const int32_t* offsets, int some, const uint64_t* w,
                             size_t w_stride, int words, int depth, const int16_t* excess, size_t excess_stride,
                             int16_t* y, size_t y_stride);

static inline __attribute__((always_inline)) void by_eight(RowsByEight four_rows, RowsByEight one_row,
                                                           const XnorPanel& x, int count, const uint64_t* w,
                                                           size_t w_stride, int rows, int words, int depth,
                                                           const int16_t* excess, size_t excess_stride, int16_t* y,
                                                           size_t y_stride) {
  PanelPlace place;
  for (int p = 0; p < count; p += 8, place.advance(x)) {
    const int some = std::min(8, count - p);
    const uint64_t* columns = x.words + place.word;
    for (int r = 0; r < rows;) {
      const int16_t* subtracted = excess == nullptr ? nullptr : excess + r * excess_stride + p;
      const bool four = r + 4 <= rows;
      (four ? four_rows : one_row)(columns, x.offsets, some, w + r * w_stride, w_stride, words, depth, subtracted,
                                   excess_stride, y + r * y_stride + p, y_stride);
      r += four ? 4 : 1;
    }
  }
}

}  // namespace bitfleet::loops
