// The loop behind GatherPlanes, compiled once per instruction set around a way to take a run of pixels apart.
#pragma once

#include <algorithm>

#include "bnncore/packing.h"

namespace bitfleet::loops {

// kSplit(source, step, words, count, target, plane_stride): word w of pixel i, at source[i * step + w], goes to
// target[w * plane_stride + i].
template <auto kSplit>
static inline __attribute__((always_inline)) void gather_planes(const uint64_t* map, size_t words,
                                                                const PixelWindow& window, uint64_t* planes,
                                                                size_t plane_stride) {
  const int step = window.column_step, left = window.column;
  const int begin = left < 0 ? std::min((-left + step - 1) / step, window.columns) : 0;
  const int end = left < window.width ? std::clamp((window.width - 1 - left) / step + 1, begin, window.columns) : begin;
  for (int i = 0; i < window.rows; ++i, planes += window.columns) {
    const int row = window.row + i * window.row_step;
    const bool inside = row >= 0 && row < window.height;
    const int from = inside ? begin : window.columns, to = inside ? end : window.columns;
    if (from > 0 || to < window.columns) {
      for (size_t w = 0; w < words; ++w) {
        uint64_t* target = planes + w * plane_stride;
        std::fill(target, target + from, uint64_t{0});
        std::fill(target + to, target + window.columns, uint64_t{0});
      }
    }
    if (from == to) continue;
    const size_t pixel = static_cast<size_t>(row) * window.width + static_cast<size_t>(left + from * step);
    kSplit(map + pixel * words, static_cast<size_t>(step) * words, words, to - from, planes + from, plane_stride);
  }
}

}  // namespace bitfleet::loops
