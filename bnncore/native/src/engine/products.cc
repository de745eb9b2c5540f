// Integer products of a tile of output channels with the whole batch: patches are gathered a few at a time, so the
// patches of a layer never exist.
#include <algorithm>
#include <bit>
#include <cstring>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "maps.h"

namespace bitfleet {

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
  if (!g.whole_map) {
    multiply_maps(block, weights, rows, count, member, y, choice);
  } else if (block == 0) {
    int8_t* expanded = at<int8_t>(layout_.scratch[member].expanded_weights);
    kernels_.input_expand(weights, g.row_words(), rows, 1, spec.fan_in(), expanded);
    kernels_.input_gemm_of<Y>()(at<uint8_t>(layout_.input), static_cast<size_t>(spec.in_features()), 0, count, expanded,
                                rows, 1, spec.fan_in(), y, y_stride);
  } else {
    uint64_t* panel = at<uint64_t>(layout_.scratch[member].patches);
    for (int first = 0; first < count; first += g.patch_count) {
      const int some = std::min(g.patch_count, count - first);
      kernels_.transpose_words(at<uint64_t>(layout_.blocks[block - 1].signs) + first * g.row_words(), g.row_words(),
                               some, static_cast<int>(g.row_words()), panel, g.panel_stride());
      multiply_panel(block, panel, some, weights, rows, y + first, y_stride);
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
  const PoolShape pool{spec.conv_width, spec.pooled_height(), spec.pooled_width(), spec.pool_height, spec.pool_width};
  Y* padding = at<Y>(scratch.padding);
  if (pads) {
    for (int r = 0; r < rows; ++r) find_padding(block, weights + r * g.row_words(), member, padding + r * conv);
  }
  if (block == 0) {
    kernels_.input_expand(weights, g.row_words(), rows, spec.kernel_height, spec.kernel_width * spec.in_channels,
                          at<int8_t>(scratch.expanded_weights));
  }
  for (int b = 0; b < count; ++b) {
    Y* target = pools ? at<Y>(scratch.conv_y) : y + size_t(b) * conv;
    if (block == 0) {
      multiply_input(b, rows, member, target, target_stride);
    } else {
      uint64_t* panel = at<uint64_t>(scratch.patches);
      const uint64_t* planes = planes_of(block, b, member);
      for (int first = 0; first < conv; first += g.patch_count) {
        const int some = std::min(g.patch_count, conv - first);
        kernels_.gather_panel(spec, planes, g.segment_words, first, some, panel, g.panel_stride());
        multiply_panel(block, panel, some, weights, rows, target + first, target_stride);
      }
    }
    for (int r = 0; r < rows; ++r) {
      Y* __restrict row = target + r * target_stride;
      if (pads) {
        const Y* __restrict excess = padding + r * conv;
        for (int p = 0; p < conv; ++p) row[p] = static_cast<Y>(row[p] - excess[p]);
      }
      if (!pools) continue;
      const size_t first = r * y_stride + size_t(b) * spec.pooled_positions();
      uint8_t* choices = choice == nullptr ? nullptr : choice + first * choice_bytes(spec);
      if constexpr (sizeof(Y) == sizeof(int16_t)) {
        if (spec.window() <= 256) {
          kernels_.channel->max_pool(row, pool, y + first, choices);
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

// Products of a panel of positions. What 16 bits cannot hold is added up from parts that they can.
template <typename Y>
void Engine::multiply_panel(size_t block, const uint64_t* panel, int count, const uint64_t* weights, int rows, Y* y,
                            size_t y_stride) const {
  const BlockGeometry& g = geometry(block);
  const int words = static_cast<int>(g.row_words()), depth = blocks_[block].fan_in();
  if constexpr (sizeof(Y) == sizeof(int16_t)) {
    kernels_.xnor_gemm(panel, g.panel_stride(), count, weights, g.row_words(), rows, words, depth, y, y_stride);
  } else {
    constexpr int kPartWords = 255;  // twice as many bits stay below 2^15
    int16_t part[kPatchPositions];
    for (int r = 0; r < rows; ++r) {
      Y* row = y + r * y_stride;
      std::fill_n(row, count, depth);
      for (int first = 0; first < words; first += kPartWords) {
        const int some = std::min(kPartWords, words - first);
        kernels_.xnor_gemm(panel + first * g.panel_stride(), g.panel_stride(), count,
                           weights + r * g.row_words() + first, g.row_words(), 1, some, 0, part, kPatchPositions);
        for (int p = 0; p < count; ++p) row[p] += part[p];
      }
    }
  }
}

// A sample's input, a plane of pixels for each word of channels.
const uint64_t* Engine::planes_of(size_t block, int sample, int member) const {
  const BlockGeometry& g = geometry(block);
  const int pixels = blocks_[block].in_positions();
  const uint64_t* map = at<uint64_t>(layout_.blocks[block - 1].signs) + size_t(sample) * pixels * g.segment_words;
  if (g.segment_words == 1) return map;
  uint64_t* planes = at<uint64_t>(layout_.scratch[member].planes);
  kernels_.transpose_words(map, g.segment_words, pixels, static_cast<int>(g.segment_words), planes,
                           static_cast<size_t>(pixels));
  return planes;
}

// Padding was read as the bit of +1, or as the byte 0, which stands for -255; its x is 0. What that added to each
// position, for one row of weights.
template <typename Y>
void Engine::find_padding(size_t block, const uint64_t* weights, int member, Y* padding) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  int32_t* sums = at<int32_t>(layout_.scratch[member].tap_sums);
  for (int tap = 0; tap < spec.taps(); ++tap) {
    int negative = 0;
    if (block == 0) {
      for (int c = 0; c < spec.in_channels; ++c) {
        const size_t k = size_t(tap) * spec.in_channels + c;
        negative += static_cast<int>(weights[k / kWordBits] >> (k % kWordBits) & 1u);
      }
    } else {
      for (size_t w = 0; w < g.segment_words; ++w) negative += std::popcount(weights[tap * g.segment_words + w]);
    }
    sums[tap] = (spec.in_channels - 2 * negative) * (block == 0 ? -255 : 1);
  }
  padding_sums(spec, sums, padding);
}

}  // namespace bitfleet
