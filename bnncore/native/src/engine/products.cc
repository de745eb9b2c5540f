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
  const bool joined = g.segment_width % kWordBits == 0;
  const int width = joined ? g.segment_width * g.segments : g.segment_width;
  const int segments = joined ? 1 : g.segments;
  const size_t depth = static_cast<size_t>(blocks_[block].fan_in());
  for (int r = 0; r < rows; ++r) {
    for (int s = 0; s < segments; ++s) {
      const size_t from = (static_cast<size_t>(first_row) + r) * depth + static_cast<size_t>(s) * width;
      uint64_t* to = target + r * row_words + s * g.segment_words;
      if (is_float(optimizer_.kind)) {
        kernels_.pack_float(at<float>(layout.latent) + from, width, to);
      } else {
        kernels_.pack_int8(at<int8_t>(layout.latent) + from, width, to);
      }
    }
  }
  return target;
}

// Products of `rows` channels with the first `count` samples, after the pool if that comes before the norm: y [rows]
// [y_stride]. `choice`, which may be null, receives the pool's arg-max.
void Engine::multiply(size_t block, const uint64_t* weights, int rows, int count, int member, int32_t* y,
                      uint8_t* choice) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  if (!g.whole_map) {
    multiply_maps(block, weights, rows, count, member, y, choice);
  } else if (block == 0) {
    kernels_.input_gemm(at<uint8_t>(layout_.input), static_cast<size_t>(spec.in_features()), count, weights,
                        g.row_words(), rows, spec.fan_in(), at<int8_t>(layout_.scratch[member].expanded_weights), y,
                        static_cast<size_t>(g.y_stride));
  } else {
    kernels_.xnor_gemm(at<uint64_t>(layout_.blocks[block - 1].signs), g.row_words(), count, weights, g.row_words(),
                       rows, static_cast<int>(g.row_words()), spec.fan_in(), y, static_cast<size_t>(g.y_stride));
  }
}

void Engine::multiply_maps(size_t block, const uint64_t* weights, int rows, int count, int member, int32_t* y,
                           uint8_t* choice) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int conv = spec.conv_positions();
  const bool pools = spec.pool == Pool::kBeforeNorm;
  const bool pads = spec.pad_height + spec.pad_width > 0;
  const size_t y_stride = static_cast<size_t>(g.y_stride);
  const size_t target_stride = pools ? static_cast<size_t>(conv) : y_stride;
  int32_t* padding = at<int32_t>(scratch.padding);
  if (pads) {
    for (int r = 0; r < rows; ++r) find_padding(block, weights + r * g.row_words(), member, padding + r * conv);
  }
  for (int b = 0; b < count; ++b) {
    int32_t* target = pools ? at<int32_t>(scratch.conv_y) : y + size_t(b) * conv;
    for (int first = 0; first < conv; first += g.patch_count) {
      const int some = std::min(g.patch_count, conv - first);
      if (block == 0) {
        uint8_t* patches = at<uint8_t>(scratch.patches);
        const uint8_t* map = at<uint8_t>(layout_.input) + size_t(b) * spec.in_features();
        gather_patches(spec, map, static_cast<size_t>(spec.in_channels), first, some, patches);
        kernels_.input_gemm(patches, static_cast<size_t>(spec.fan_in()), some, weights, g.row_words(), rows,
                            spec.fan_in(), at<int8_t>(scratch.expanded_weights), target + first, target_stride);
      } else {
        uint64_t* patches = at<uint64_t>(scratch.patches);
        const uint64_t* map =
            at<uint64_t>(layout_.blocks[block - 1].signs) + size_t(b) * spec.in_positions() * g.segment_words;
        gather_patches(spec, map, g.segment_words, first, some, patches);
        kernels_.xnor_gemm(patches, g.row_words(), some, weights, g.row_words(), rows, static_cast<int>(g.row_words()),
                           spec.fan_in(), target + first, target_stride);
      }
    }
    for (int r = 0; r < rows; ++r) {
      int32_t* row = target + r * target_stride;
      if (pads) {
        for (int p = 0; p < conv; ++p) row[p] -= padding[r * conv + p];
      }
      if (pools) {
        const size_t first = r * y_stride + size_t(b) * spec.pooled_positions();
        max_pool(spec, row, y + first, choice == nullptr ? nullptr : choice + first * choice_bytes(spec));
      }
    }
  }
}

// Padding was read as the bit of +1, or as the byte 0, which stands for -255; its x is 0. What that added to each
// position, for one row of weights.
void Engine::find_padding(size_t block, const uint64_t* weights, int member, int32_t* padding) const {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  int32_t* sums = at<int32_t>(layout_.scratch[member].tap_sums);
  for (int tap = 0; tap < spec.taps(); ++tap) {
    int negative = 0;
    for (int c = 0; c < spec.in_channels; ++c) {
      const size_t k = block == 0 ? size_t(tap) * spec.in_channels + c : tap * g.segment_words * kWordBits + c;
      negative += static_cast<int>(weights[k / kWordBits] >> (k % kWordBits) & 1u);
    }
    sums[tap] = (spec.in_channels - 2 * negative) * (block == 0 ? -255 : 1);
  }
  padding_sums(spec, sums, padding);
}

}  // namespace bitfleet
