// A transpose by square tiles, with what is left over at the right and below given to the portable one. Inlined into a
// function that carries the target attribute of `kTransposeTile`.
#pragma once

#include <cstddef>

namespace bitfleet::loops {

template <int kSide, auto kTransposeTile, auto kPortable, typename T>
static inline __attribute__((always_inline)) void transpose_tiles(const T* source, size_t source_stride, int rows,
                                                                  int columns, T* target, size_t target_stride) {
  const int whole_rows = rows / kSide * kSide, whole_columns = columns / kSide * kSide;
  for (int r = 0; r < whole_rows; r += kSide) {
    for (int c = 0; c < whole_columns; c += kSide) {
      kTransposeTile(source + r * source_stride + c, source_stride, target + c * target_stride + r, target_stride);
    }
  }
  if (whole_columns < columns) {
    kPortable(source + whole_columns, source_stride, whole_rows, columns - whole_columns,
              target + whole_columns * target_stride, target_stride);
  }
  if (whole_rows < rows) {
    kPortable(source + whole_rows * source_stride, source_stride, rows - whole_rows, columns, target + whole_rows,
              target_stride);
  }
}

}  // namespace bitfleet::loops
