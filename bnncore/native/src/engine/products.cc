// Integer products of a tile of output channels with the whole batch: patches are gathered a few at a time, so the
// patches of a layer never exist.
#include <algorithm>
#include <bit>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "maps.h"

namespace bitfleet {

namespace {

// As panel_offsets, where samples lie side by side, for one position of their maps; zeros follow the last pixel.
void find_offsets_abreast(const BlockSpec& spec, const BlockGeometry& g, int position, int32_t* offsets) {
  const int row = position / spec.conv_width * spec.stride - spec.pad_height;
  const int column = position % spec.conv_width * spec.stride - spec.pad_width;
  const int words = static_cast<int>(g.segment_words);
  for (int tap = 0; tap < spec.taps(); ++tap) {
    const int in_row = row + tap / spec.kernel_width, in_column = column + tap % spec.kernel_width;
    const bool inside = in_row >= 0 && in_row < spec.in_height && in_column >= 0 && in_column < spec.in_width;
    for (int w = 0; w < words; ++w) {
      const int line = inside ? (in_row * spec.in_width + in_column) * words + w : spec.in_positions() * words;
      *offsets++ = line * g.panel_columns;
    }
  }
}

}  // namespace

const uint64_t* Engine::pack_rows(size_t block, int first_row, int rows, uint64_t* target) const {
  const BlockGeometry& g = geometry(block);
  const BlockLayout& layout = layout_.blocks[block];
  const size_t row_words = g.row_words();
  if (optimizer_.kind == OptimizerKind::kFrozen) return at<uint64_t>(layout.packed) + first_row * row_words;
  if (optimizer_.kind == OptimizerKind::kBop) {
    std::memcpy(target, at<uint64_t>(layout.packed) + first_row * row_words, rows * row_words * sizeof(uint64_t));
    return target;
  }
  // Segments that fill their words follow each other without a gap: they are packed as one.
  const int width = g.joined() ? g.segment_width * g.segments : g.segment_width;
  const int segments = g.joined() ? 1 : g.segments;
  const size_t depth = static_cast<size_t>(blocks_[block].fan_in());
  if (segments == 1 && depth % kWordBits == 0) return pack_run(block, first_row * depth, rows * width, target);
  for (int r = 0; r < rows; ++r) {
    for (int s = 0; s < segments; ++s) {
      const size_t from = (static_cast<size_t>(first_row) + r) * depth + static_cast<size_t>(s) * width;
      uint64_t* to = target + r * row_words + s * g.segment_words;
      pack_run(block, from, width, to);
    }
  }
  return target;
}

// A run of latent weights that lie side by side.
const uint64_t* Engine::pack_run(size_t block, size_t first, int count, uint64_t* target) const {
  const BlockLayout& layout = layout_.blocks[block];
  if (is_float(optimizer_.kind)) {
    kernels_.pack_float(at<float>(layout.latent) + first, count, target);
  } else {
    kernels_.pack_int8(at<int8_t>(layout.latent) + first, count, target);
  }
  return target;
}

// Products of `rows` channels with the first `count` samples, after the pool if that comes before the norm: y [rows]
// [y_stride]. `choice`, which may be null, receives the pool's arg-max.
template <typename Y>
void Engine::multiply(size_t block, const uint64_t* weights, int rows, int count, int member, Y* y,
                      uint8_t* choice) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const size_t y_stride = static_cast<size_t>(g.y_stride);
  if (block == 0 && g.whole_map) {
    int8_t* expanded = at<int8_t>(layout_.scratch[member].expanded_weights);
    kernels_.input_expand(weights, g.row_words(), rows, 1, spec.fan_in(), expanded);
    kernels_.input_gemm_of<Y>()(at<uint8_t>(layout_.input), static_cast<size_t>(spec.in_features()), 0, count, expanded,
                                rows, 1, spec.fan_in(), y, y_stride);
  } else if (g.abreast) {
    multiply_abreast(block, weights, rows, count, member, y);
  } else {
    multiply_maps(block, weights, rows, count, member, y, choice);
  }
}

// Products of samples side by side, one position of their maps after another.
template <typename Y>
void Engine::multiply_abreast(size_t block, const uint64_t* weights, int rows, int count, int member, Y* y) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int conv = spec.conv_positions(), abreast = g.panel_columns;
  const size_t map_words = static_cast<size_t>(spec.in_positions()) * g.segment_words;
  const size_t y_stride = static_cast<size_t>(g.y_stride), stride = static_cast<size_t>(abreast);
  const bool pads = spec.pad_height + spec.pad_width > 0;
  const uint64_t* signs = at<uint64_t>(layout_.blocks[block - 1].signs);
  int32_t* offsets = at<int32_t>(scratch.offsets);
  uint64_t* words = at<uint64_t>(scratch.patches);
  const XnorPanel panel{words, offsets, abreast, abreast};
  Y* padding = at<Y>(scratch.padding);
  if (pads) {
    std::fill_n(words + map_words * stride, stride, uint64_t{0});  // what is read in the padding
    find_padding(block, weights, rows, member, padding);
  }
  for (int first = 0; first < count; first += abreast) {
    const int some = std::min(abreast, count - first);
    kernels_.transpose_words(signs + first * map_words, map_words, some, static_cast<int>(map_words), words, stride);
    for (int p = 0; p < conv; ++p) {
      find_offsets_abreast(spec, g, p, offsets);
      if (conv == 1 && !pads) {
        multiply_panel<Y>(block, panel, some, weights, rows, nullptr, y + first, y_stride);
        continue;
      }
      Y* staged = at<Y>(scratch.conv_y);
      multiply_panel<Y>(block, panel, some, weights, rows, nullptr, staged, stride);
      for (int r = 0; r < rows; ++r) {
        const Y excess = pads ? padding[r * conv + p] : Y{0};
        Y* target = y + r * y_stride + size_t(first) * conv + p;
        for (int b = 0; b < some; ++b) target[size_t(b) * conv] = static_cast<Y>(staged[r * stride + b] - excess);
      }
    }
  }
}

template <typename Y>
void Engine::multiply_maps(size_t block, const uint64_t* weights, int rows, int count, int member, Y* y,
                           uint8_t* choice) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int conv = spec.conv_positions();
  const bool pools = spec.pool == Pool::kBeforeNorm;
  const bool pads = spec.pad_height + spec.pad_width > 0;
  const size_t y_stride = static_cast<size_t>(g.y_stride);
  const size_t target_stride = pools ? static_cast<size_t>(conv) : y_stride;
  const PoolShape pool = pool_shape(spec);
  Y* padding = at<Y>(scratch.padding);
  if (pads) find_padding(block, weights, rows, member, padding);
  if (block == 0) {
    kernels_.input_expand(weights, g.row_words(), rows, spec.kernel_height, spec.kernel_width * spec.in_channels,
                          at<int8_t>(scratch.expanded_weights));
  } else {
    const PanelShape shape(spec, g.shifted, g.panel_lines, g.panel_columns);
    panel_offsets(spec, shape, g.segment_words, at<int32_t>(scratch.offsets));
  }
  for (int b = 0; b < count; ++b) {
    Y* target = pools ? at<Y>(scratch.conv_y) : y + size_t(b) * conv;
    if (block == 0) {
      multiply_input(b, rows, member, target, target_stride);
    } else {
      multiply_map(block, b, weights, rows, member, target, target_stride);
    }
    for (int r = 0; r < rows; ++r) {
      Y* __restrict row = target + r * target_stride;
      if (pads && block == 0) {
        const Y* __restrict excess = padding + r * conv;
        for (int p = 0; p < conv; ++p) row[p] = static_cast<Y>(row[p] - excess[p]);
      }
      if (!pools) continue;
      const size_t first = r * y_stride + size_t(b) * spec.pooled_positions();
      uint8_t* choices = choice == nullptr ? nullptr : choice + first * choice_bytes(spec);
      if constexpr (sizeof(Y) == sizeof(int16_t)) {
        if (spec.window() <= 256) {
          kernels_.pool->max_pool(row, pool, y + first, choices);
          continue;
        }
      }
      max_pool(spec, row, y + first, choices);
    }
  }
}

template void Engine::multiply(size_t, const uint64_t*, int, int, int, int16_t*, uint8_t*) const;
template void Engine::multiply(size_t, const uint64_t*, int, int, int, int32_t*, uint8_t*) const;

// Products of one sample with the first block's weights, as expanded, a row of the map at a time.
template <typename Y>
void Engine::multiply_input(int sample, int rows, int member, Y* y, size_t y_stride) const {
  const BlockSpec& spec = blocks_[0];
  const ScratchLayout& scratch = layout_.scratch[member];
  const size_t channels = static_cast<size_t>(spec.in_channels);
  const uint8_t* map = at<uint8_t>(layout_.input) + size_t(sample) * spec.in_features();
  size_t pitch = static_cast<size_t>(spec.in_width) * channels;
  if (spec.pad_height + spec.pad_width > 0) {
    uint8_t* padded = at<uint8_t>(scratch.patches);
    pad_map(spec, map, padded);
    map = padded;
    pitch = static_cast<size_t>(spec.padded_width()) * channels;
  }
  for (int row = 0; row < spec.conv_height; ++row) {
    kernels_.input_gemm_of<Y>()(map + size_t(row) * spec.stride * pitch, spec.stride * channels, pitch, spec.conv_width,
                                at<int8_t>(scratch.expanded_weights), rows, spec.kernel_height,
                                spec.kernel_width * spec.in_channels, y + size_t(row) * spec.conv_width, y_stride);
  }
}

// Products of one sample with an inner block's weights, as many positions at once as the panel takes.
template <typename Y>
void Engine::multiply_map(size_t block, int sample, const uint64_t* weights, int rows, int member, Y* y,
                          size_t y_stride) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const PanelShape shape(spec, g.shifted, g.panel_lines, g.panel_columns);
  const uint64_t* map = at<uint64_t>(layout_.blocks[block - 1].signs) +
                        static_cast<size_t>(sample) * spec.in_positions() * g.segment_words;
  const Y* excess = spec.pad_height + spec.pad_width > 0 ? at<Y>(scratch.padding) : nullptr;
  uint64_t* words = at<uint64_t>(scratch.patches);
  const XnorPanel panel{words, at<int32_t>(scratch.offsets), g.panel_columns, shape.pitch};
  for (int line = 0; line < spec.conv_height; line += g.panel_lines) {
    const int lines = std::min(g.panel_lines, spec.conv_height - line);
    for (int column = 0; column < spec.conv_width; column += g.panel_columns) {
      const int columns = std::min(g.panel_columns, spec.conv_width - column);
      gather_panel(kernels_.gather_planes, spec, shape, g.panel_lines, map, g.segment_words, line, lines, column,
                   words);
      const int first = line * spec.conv_width + column;
      multiply_panel(block, panel, lines * columns, weights, rows, excess == nullptr ? nullptr : excess + first,
                     y + first, y_stride);
    }
  }
}

// Products of a panel of positions. What 16 bits cannot hold is added up from parts that they can.
template <typename Y>
void Engine::multiply_panel(size_t block, const XnorPanel& panel, int count, const uint64_t* weights, int rows,
                            const Y* excess, Y* y, size_t y_stride) const {
  const BlockGeometry& g = geometry(block);
  const int words = static_cast<int>(g.row_words()), depth = blocks_[block].fan_in();
  const size_t conv = static_cast<size_t>(blocks_[block].conv_positions());
  if constexpr (sizeof(Y) == sizeof(int16_t)) {
    kernels_.xnor_gemm(panel, count, weights, g.row_words(), rows, words, depth, excess, conv, y, y_stride);
  } else {
    constexpr int kPartWords = 255;  // twice as many bits stay below 2^15
    int16_t part[kPatchPositions];
    for (int r = 0; r < rows; ++r) {
      Y* row = y + r * y_stride;
      for (int p = 0; p < count; ++p) row[p] = excess == nullptr ? depth : depth - excess[r * conv + p];
      for (int first = 0; first < words; first += kPartWords) {
        const int some = std::min(kPartWords, words - first);
        kernels_.xnor_gemm({panel.words, panel.offsets + first, panel.width, panel.pitch}, count,
                           weights + r * g.row_words() + first, g.row_words(), 1, some, 0, nullptr, 0, part,
                           kPatchPositions);
        for (int p = 0; p < count; ++p) row[p] += part[p];
      }
    }
  }
}

// Padding was read as the bit of +1, or as the byte 0, which stands for -255; its x is 0. What that added to each
// position: padding [rows][conv positions].
template <typename Y>
void Engine::find_padding(size_t block, const uint64_t* weights, int rows, int member, Y* padding) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  int32_t* sums = at<int32_t>(layout_.scratch[member].tap_sums);
  for (int r = 0; r < rows; ++r, weights += g.row_words(), padding += spec.conv_positions()) {
    if (block > 0) {
      sign_sums(spec, weights, g.segment_words, sums);
    } else {
      for (int tap = 0; tap < spec.taps(); ++tap) {
        int negative = 0;
        for (int c = 0; c < spec.in_channels; ++c) {
          const size_t k = size_t(tap) * spec.in_channels + c;
          negative += static_cast<int>(weights[k / kWordBits] >> (k % kWordBits) & 1u);
        }
        sums[tap] = (spec.in_channels - 2 * negative) * -255;
      }
    }
    padding_sums(spec, sums, padding);
  }
}

}  // namespace bitfleet
