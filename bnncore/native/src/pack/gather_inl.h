// The loop behind GatherPanel, compiled once per instruction set: runs of words, copied eight at a time.
#pragma once

#include <algorithm>
#include <cstring>

#include "../engine/maps.h"
#include "bnncore/packing.h"

namespace bitfleet::loops {

static inline __attribute__((always_inline)) void gather_panel(const BlockSpec& s, const uint64_t* planes, size_t words,
                                                               int first, int count, uint64_t* panel, size_t stride) {
  const size_t pixels = static_cast<size_t>(s.in_positions());
  int row = first / s.conv_width, column = first % s.conv_width;
  for (int done = 0; done < count;) {
    const int run = std::min(s.conv_width - column, count - done);
    for (int tap = 0; tap < s.taps(); ++tap) {
      const TapSpan span = tap_span(s, tap, row);
      const int begin = std::clamp(span.begin - column, 0, run), end = std::clamp(span.end - column, begin, run);
      const size_t pixel = static_cast<size_t>(span.in_row) * s.in_width + static_cast<size_t>(span.in_column) +
                           static_cast<size_t>(std::max(column - span.begin, 0)) * static_cast<size_t>(s.stride);
      for (size_t w = 0; w < words; ++w) {
        uint64_t* target = panel + (tap * words + w) * stride + done;
        const uint64_t* source = planes + w * pixels + pixel;
        for (int i = 0; i < begin; ++i) target[i] = 0;
        if (s.stride == 1) {
          for (int i = begin; i < end; i += kPanelLanes) {
            std::memcpy(target + i, source + (i - begin), kPanelLanes * sizeof(uint64_t));
          }
        } else {
          for (int i = begin; i < end; ++i) target[i] = source[static_cast<size_t>(i - begin) * s.stride];
        }
        for (int i = end; i < run; ++i) target[i] = 0;
      }
    }
    done += run;
    column = 0;
    ++row;
  }
}

}  // namespace bitfleet::loops
