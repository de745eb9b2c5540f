// What a position of a convolution reads, tap by tap.
#pragma once

#include <algorithm>
#include <cstddef>

#include "bnncore/network.h"

namespace bitfleet {

// Columns [k0, k0 + depth) of the patches [positions][kernel height][kernel width][channels], split at every tap.
class PatchRuns {
 public:
  static constexpr int kMost = 256;  // columns at once

  struct Run {
    int kernel_row, kernel_column;
    int channel, count;
    int target;  // first column of the run, from k0
  };

  PatchRuns(const BlockSpec& spec, int k0, int depth) : spec_(spec) {
    const int channels = spec.in_channels;
    for (int k = k0; k < k0 + depth;) {
      const int tap = k / channels, channel = k % channels;
      const int some = std::min(k0 + depth - k, channels - channel);
      add({tap / spec.kernel_width, tap % spec.kernel_width, channel, some, k - k0});
      k += some;
    }
  }

  // Calls inside(pixel, run) or outside(run) for each run that position `row` of the batch reads; `pixel` counts
  // through the maps of the whole batch.
  template <typename Inside, typename Outside>
  void visit(int row, Inside inside, Outside outside) const {
    const int sample = row / spec_.conv_positions(), position = row % spec_.conv_positions();
    const int top = position / spec_.conv_width * spec_.stride - spec_.pad_height;
    const int left = position % spec_.conv_width * spec_.stride - spec_.pad_width;
    for (int i = 0; i < size_; ++i) {
      const Run& run = runs_[i];
      const int y = top + run.kernel_row, x = left + run.kernel_column;
      if (y < 0 || y >= spec_.in_height || x < 0 || x >= spec_.in_width) {
        outside(run);
      } else {
        inside((static_cast<size_t>(sample) * spec_.in_height + y) * spec_.in_width + x, run);
      }
    }
  }

 private:
  void add(const Run& run) { runs_[size_++] = run; }

  const BlockSpec& spec_;
  Run runs_[kMost];
  int size_ = 0;
};

// Whether the kernel covers its whole map, as in a dense layer: patches are maps then.
inline bool covers_map(const BlockSpec& s) {
  return s.conv_positions() == 1 && s.pad_height + s.pad_width == 0 && s.kernel_height == s.in_height &&
         s.kernel_width == s.in_width;
}

// Samples whose input gradients are added up together: about 192 positions, of maps no larger than `most` numbers.
inline int samples_at_once(const BlockSpec& s, size_t most) {
  const int by_positions = std::max(1, 192 / s.conv_positions());
  const size_t by_size = std::max<size_t>(1, most / static_cast<size_t>(s.in_features()));
  return static_cast<int>(std::min<size_t>(by_positions, by_size));
}

// Adds columns [first, first + columns) of the gradients of some patches to the maps they were read from; `maps` starts
// at that of `first_sample`.
inline void add_patches(const BlockSpec& s, int first_sample, int first_row, int rows, int first, int columns,
                        const float* tile, size_t stride, float* maps) {
  const PatchRuns runs(s, first, columns);
  const size_t first_pixel = static_cast<size_t>(first_sample) * static_cast<size_t>(s.in_positions());
  for (int i = 0; i < rows; ++i) {
    const float* patch = tile + static_cast<size_t>(i) * stride;
    runs.visit(
        first_row + i,
        [&](size_t pixel, const PatchRuns::Run& run) {
          float* target = maps + (pixel - first_pixel) * static_cast<size_t>(s.in_channels) + run.channel;
          for (int k = 0; k < run.count; ++k) target[k] += patch[run.target + k];
        },
        [](const PatchRuns::Run&) {});
  }
}

}  // namespace bitfleet
