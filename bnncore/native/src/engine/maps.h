// How a convolution and a pool walk over their maps: spans, patches, columns, windows. Integers only.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>

#include "bnncore/network.h"
#include "bnncore/packing.h"
#include "bnncore/pool.h"

namespace bitfleet {

// The outputs [begin, end) of one row of the product map that read a pixel under a tap; the others read padding.
// Output begin + i reads pixel (in_row, in_column + i * stride).
struct TapSpan {
  int begin, end;
  int in_row, in_column;
};

inline TapSpan tap_span(const BlockSpec& s, int tap, int row) {
  const int in_row = row * s.stride + tap / s.kernel_width - s.pad_height;
  const int offset = tap % s.kernel_width - s.pad_width;
  const int last = s.in_width - 1 - offset;
  const int begin = offset < 0 ? (-offset + s.stride - 1) / s.stride : 0;
  const int end = last < 0 ? 0 : std::min(s.conv_width, last / s.stride + 1);
  if (in_row < 0 || in_row >= s.in_height || begin >= end) return {0, 0, 0, 0};
  return {begin, end, in_row, begin * s.stride + offset};
}

// What `count` positions from `first` on read of one sample's map [in_height][in_width][unit] of bytes:
// patches [count][taps][unit], zeros in the padding. Both can be read or written for kCopiedBytes past their end.
inline constexpr int kCopiedBytes = 16;

inline void gather_patches(const BlockSpec& s, const uint8_t* map, size_t unit, int first, int count,
                           uint8_t* patches) {
  const int kernel_width = s.kernel_width;
  const size_t width = static_cast<size_t>(kernel_width) * unit;
  int row = first / s.conv_width, column = first % s.conv_width;
  for (int i = 0; i < count; ++i) {
    const int left = column * s.stride - s.pad_width;
    const size_t from = static_cast<size_t>(std::clamp(-left, 0, kernel_width)) * unit;
    const size_t to = static_cast<size_t>(std::clamp(s.in_width - left, 0, kernel_width)) * unit;
    for (int ky = 0; ky < s.kernel_height; ++ky, patches += width) {
      const int in_row = row * s.stride + ky - s.pad_height;
      if (in_row < 0 || in_row >= s.in_height) {
        std::memset(patches, 0, width);
        continue;
      }
      const uint8_t* source = map + (ptrdiff_t{in_row} * s.in_width + left) * static_cast<ptrdiff_t>(unit);
      if (from > 0) std::memset(patches, 0, from);
      for (size_t k = from; k < to; k += kCopiedBytes) std::memcpy(patches + k, source + k, kCopiedBytes);
      if (to < width) std::memset(patches + to, 0, width - to);
    }
    if (++column == s.conv_width) column = 0, ++row;
  }
}

// One sample's map of bytes with its padding, which is 0: padded [padded_height][padded_width][channels].
inline void pad_map(const BlockSpec& s, const uint8_t* map, uint8_t* padded) {
  const size_t unit = static_cast<size_t>(s.in_channels), width = static_cast<size_t>(s.padded_width()) * unit;
  const int columns = std::min(s.in_width, s.padded_width() - s.pad_width);
  for (int row = 0; row < s.padded_height(); ++row, padded += width) {
    const int in_row = row - s.pad_height;
    std::memset(padded, 0, width);
    if (in_row < 0 || in_row >= s.in_height) continue;
    std::memcpy(padded + static_cast<size_t>(s.pad_width) * unit, map + static_cast<size_t>(in_row) * s.in_width * unit,
                static_cast<size_t>(columns) * unit);
  }
}

// Word `word` of what positions first .. first + count of the batch read under a tap: words [count], 0 in the padding.
// maps: [batch][in_height][in_width][pixel_words].
inline void gather_column(const BlockSpec& s, const uint64_t* maps, size_t pixel_words, int tap, size_t word, int first,
                          int count, uint64_t* words) {
  const size_t map_words = static_cast<size_t>(s.in_positions()) * pixel_words;
  const size_t step = static_cast<size_t>(s.stride) * pixel_words;
  int sample = first / s.conv_positions();
  int row = first % s.conv_positions() / s.conv_width, column = first % s.conv_width;
  for (int i = 0; i < count;) {
    const TapSpan span = tap_span(s, tap, row);
    const int end = std::min(s.conv_width, column + count - i);
    const uint64_t* source =
        maps + static_cast<size_t>(sample) * map_words +
        (static_cast<size_t>(span.in_row) * s.in_width + static_cast<size_t>(span.in_column)) * pixel_words + word;
    for (; column < std::min(end, span.begin); ++column) words[i++] = 0;
    for (; column < std::min(end, span.end); ++column) {
      words[i++] = source[static_cast<size_t>(column - span.begin) * step];
    }
    for (; column < end; ++column) words[i++] = 0;
    if (column == s.conv_width) {
      column = 0;
      if (++row == s.conv_height) row = 0, ++sample;
    }
  }
}

// How a panel of positions lies in memory (xnor_gemm.h): planes of pixels with their padding, one a word of channels.
// Lines of positions are as far apart as those of the pixels below them, unless the planes are `shifted`: then there is
// a set of planes for each column of the kernel (and each line, as far as the stride skips any), of the pixels that
// positions read there.
struct PanelShape {
  bool shifted;
  int rows, pitch;  // of a plane
  int sets_across, sets_down;
  size_t plane_words;

  PanelShape(const BlockSpec& s, bool shifted, int lines, int columns)
      : shifted(shifted),
        rows(lines + (s.kernel_height - 1) / s.stride),
        pitch(shifted ? columns : columns + s.kernel_width - 1),
        sets_across(shifted ? s.kernel_width : 1),
        sets_down(shifted ? std::min(s.stride, s.kernel_height) : 1),
        plane_words(static_cast<size_t>(rows) * static_cast<size_t>(pitch)) {}

  // All of it, for pixels of `words` words.
  size_t size(size_t words) const {
    return static_cast<size_t>(sets_across) * static_cast<size_t>(sets_down) * words * plane_words;
  }
};

// Where a panel has each word of its positions, for pixels of `words` words: tap by tap, as the rows of weights have
// theirs.
inline void panel_offsets(const BlockSpec& s, const PanelShape& shape, size_t words, int32_t* offsets) {
  for (int tap = 0; tap < s.taps(); ++tap) {
    const int row = tap / s.kernel_width, column = tap % s.kernel_width;
    const int set = shape.shifted ? column * shape.sets_down + row % s.stride : 0;
    const int place = row / s.stride * shape.pitch + (shape.shifted ? 0 : column);
    for (size_t w = 0; w < words; ++w) {
      *offsets++ = static_cast<int32_t>((static_cast<size_t>(set) * words + w) * shape.plane_words) + place;
    }
  }
}

// Fills a panel, which was shaped for `panel_lines`, for the positions from (line, column) on, `lines` of them down.
// map: [in_height][in_width][words].
inline void gather_panel(GatherPlanes gather_planes, const BlockSpec& s, const PanelShape& shape, int panel_lines,
                         const uint64_t* map, size_t words, int line, int lines, int column, uint64_t* panel) {
  for (int across = 0; across < shape.sets_across; ++across) {
    for (int down = 0; down < shape.sets_down; ++down) {
      const size_t set = static_cast<size_t>(across * shape.sets_down + down);
      gather_planes(map, words,
                    {s.in_height, s.in_width, line * s.stride - s.pad_height + down, shape.rows - panel_lines + lines,
                     s.stride, column * s.stride - s.pad_width + across, shape.pitch, s.stride},
                    panel + set * words * shape.plane_words, shape.plane_words);
    }
  }
}

// sums[tap] = sum of one output channel's signs, packed as [taps][words].
inline void sign_sums(const BlockSpec& s, const uint64_t* weights, size_t words, int32_t* sums) {
  for (int tap = 0; tap < s.taps(); ++tap) {
    int negative = 0;
    for (size_t w = 0; w < words; ++w) negative += std::popcount(*weights++);
    sums[tap] = s.in_channels - 2 * negative;
  }
}

// sums[tap] = sum of values[position] over the positions where that tap reads a pixel.
inline void tap_sums(const BlockSpec& s, const int32_t* values, int32_t* sums) {
  for (int tap = 0; tap < s.taps(); ++tap) {
    int32_t sum = 0;
    for (int row = 0; row < s.conv_height; ++row) {
      const TapSpan span = tap_span(s, tap, row);
      for (int i = span.begin; i < span.end; ++i) sum += values[row * s.conv_width + i];
    }
    sums[tap] = sum;
  }
}

// padded[position] = sum of values[tap] over the taps that read padding there.
template <typename Y>
void padding_sums(const BlockSpec& s, const int32_t* values, Y* padded) {
  int32_t total = 0;
  for (int tap = 0; tap < s.taps(); ++tap) total += values[tap];
  std::fill_n(padded, s.conv_positions(), static_cast<Y>(total));
  for (int tap = 0; tap < s.taps(); ++tap) {
    for (int row = 0; row < s.conv_height; ++row) {
      const TapSpan span = tap_span(s, tap, row);
      for (int i = span.begin; i < span.end; ++i) padded[row * s.conv_width + i] -= static_cast<Y>(values[tap]);
    }
  }
}

// The position of the product map at the top left of window `q` of the pool.
inline int window_corner(const BlockSpec& s, int q) {
  return q / s.pooled_width() * s.pool_height * s.conv_width + q % s.pooled_width() * s.pool_width;
}

// The position of element `i` of a window, relative to its corner.
inline int window_offset(const BlockSpec& s, int i) { return i / s.pool_width * s.conv_width + i % s.pool_width; }

// Where the product map has the gradient of position `q` of the block's output, before that is routed.
inline int gradient_position(const BlockSpec& s, int q) { return s.pool == Pool::kNone ? q : window_corner(s, q); }

inline PoolShape pool_shape(const BlockSpec& s) {
  return {s.conv_height, s.conv_width, s.pooled_height(), s.pooled_width(), s.pool_height, s.pool_width};
}

// The element of each window that was its largest: a byte, or four where a window has more than 256 elements.
inline size_t choice_bytes(const BlockSpec& s) { return s.window() <= 256 ? 1 : sizeof(int32_t); }

inline void set_choice(const BlockSpec& s, uint8_t* choices, size_t q, int element) {
  if (s.window() <= 256) {
    choices[q] = static_cast<uint8_t>(element);
  } else {
    reinterpret_cast<int32_t*>(choices)[q] = element;
  }
}

inline int get_choice(const BlockSpec& s, const uint8_t* choices, size_t q) {
  return s.window() <= 256 ? choices[q] : reinterpret_cast<const int32_t*>(choices)[q];
}

// pooled[q] = the largest of y in window q; its choice, unless `choices` is null, is the first of equal ones. For maps
// that PoolKernels::max_pool does not take.
template <typename Y>
void max_pool(const BlockSpec& s, const Y* y, Y* pooled, uint8_t* choices) {
  for (int q = 0; q < s.pooled_positions(); ++q) {
    const Y* corner = y + window_corner(s, q);
    Y best = corner[0];
    int best_index = 0;
    for (int i = 1; i < s.window(); ++i) {
      const Y value = corner[window_offset(s, i)];
      best_index = value > best ? i : best_index;
      best = std::max(best, value);
    }
    pooled[q] = best;
    if (choices != nullptr) set_choice(s, choices, static_cast<size_t>(q), best_index);
  }
}

// grad [conv positions]: each pooled gradient at its choice. For windows that PoolKernels::spread does not take.
inline void spread(const BlockSpec& s, const int8_t* pooled, const uint8_t* choices, int8_t* grad) {
  std::memset(grad, 0, static_cast<size_t>(s.conv_positions()));
  for (int q = 0; q < s.pooled_positions(); ++q) {
    grad[window_corner(s, q) + window_offset(s, get_choice(s, choices, static_cast<size_t>(q)))] = pooled[q];
  }
}

}  // namespace bitfleet
