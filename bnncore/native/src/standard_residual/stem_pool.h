// The windows of a stem's pool: they may overlap, and at the edges of the map have the elements inside it alone.
#pragma once

#include <algorithm>

#include "bnncore/residual_engine.h"

namespace bitfleet {

struct StemWindow {
  int number;         // of its output, row by row
  int top, left;      // of what lies inside the map
  int height, width;  // likewise
  int map_width;

  int size() const { return height * width; }
  // Of element i, row by row.
  int pixel(int i) const { return (top + i / width) * map_width + left + i % width; }
};

template <typename Visit>
void for_each_window(const StemSpec& stem, Visit visit) {
  const int height = stem.conv.conv_height, width = stem.conv.conv_width;
  for (int number = 0; number < stem.out_positions(); ++number) {
    const int row = number / stem.out_width * stem.pool_stride_height - stem.pool_pad_height;
    const int column = number % stem.out_width * stem.pool_stride_width - stem.pool_pad_width;
    const int top = std::max(row, 0), left = std::max(column, 0);
    visit(StemWindow{number, top, left, std::min(row + stem.pool_height, height) - top,
                     std::min(column + stem.pool_width, width) - left, width});
  }
}

}  // namespace bitfleet
