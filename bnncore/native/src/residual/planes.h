// How the maps of real-valued convolutions lie in a thread's scratch.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bnncore/fixed_point.h"
#include "bnncore/network.h"
#include "bnncore/packing.h"
#include "bnncore/residual_engine.h"

namespace bitfleet {

// Added to a unit's number for the random numbers of what stands beside its binary convolution.
inline constexpr uint32_t kSide = 1 << 16;
inline constexpr size_t kStemTileBytes = 1700000;
inline constexpr int kStemBits = 14, kShortcutBits = 20;  // of sums of products, beside their sign

// A stem's padded input, channel by channel and, of each, column by column modulo the stride: outputs side by side read
// values side by side.
struct StemPlanes {
  int channels, stride, height, width;
  size_t plane() const { return static_cast<size_t>(height) * static_cast<size_t>(width); }
  size_t size() const { return plane() * static_cast<size_t>(channels) * static_cast<size_t>(stride); }
};

inline StemPlanes stem_planes(const BlockSpec& conv) {
  return {conv.in_channels, conv.stride, conv.padded_height(), (conv.padded_width() + conv.stride - 1) / conv.stride};
}

// Where the terms of the first output's product lie, in the order of the weights.
inline void stem_offsets(const BlockSpec& conv, int32_t* offsets) {
  const StemPlanes p = stem_planes(conv);
  for (int tap = 0; tap < conv.taps(); ++tap) {
    const int row = tap / conv.kernel_width, column = tap % conv.kernel_width;
    for (int c = 0; c < conv.in_channels; ++c) {
      const size_t plane = static_cast<size_t>(c * conv.stride + column % conv.stride);
      *offsets++ = static_cast<int32_t>(plane * p.plane() + static_cast<size_t>(row * p.width + column / conv.stride));
    }
  }
}

// Channels of the stem whose products for the batch are computed at once.
inline int stem_rows(const BlockSpec& conv, int batch_size) {
  const size_t bytes = static_cast<size_t>(batch_size) * static_cast<size_t>(conv.conv_positions()) * sizeof(int16_t);
  return static_cast<int>(std::clamp<size_t>(kStemTileBytes / bytes, 1, 8));
}

// What a sample of a shortcut's way back needs behind its branch's sums: sums [in channels][positions], offsets and
// weights of a column, and the gradients [out channels][positions].
struct ShortcutStaged {
  size_t sums, offsets, column, planes, bytes;  // in bytes from the first
};

inline ShortcutStaged shortcut_staged(const BlockSpec& conv) {
  const size_t positions = static_cast<size_t>(conv.conv_positions());
  const size_t in = static_cast<size_t>(conv.in_channels), out = static_cast<size_t>(conv.out_channels);
  ShortcutStaged s{};
  s.offsets = s.sums + in * positions * sizeof(int32_t);
  s.planes = s.offsets + out * sizeof(int32_t);
  s.column = s.planes + out * positions * sizeof(int16_t);
  s.bytes = s.column + out * sizeof(int16_t);
  return s;
}

std::vector<BlockSpec> residual_blocks(const ResidualSpec& network);

}  // namespace bitfleet
