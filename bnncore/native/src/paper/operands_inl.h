// How the preset `paper` reads what it multiplies, and widens what it sums.
#pragma once

#include <algorithm>
#include <bit>

#include "../layerwise/products_inl.h"
#include "bnncore/packing.h"
#include "bnncore/paper_engine.h"

namespace bitfleet {

inline size_t PaperEngine::words(size_t block) const {
  return static_cast<size_t>(words_for(blocks_[block].out_channels));
}

inline auto PaperEngine::inputs_of(size_t block) const {
  const size_t channels = static_cast<size_t>(blocks_[block].in_channels);
  const uint8_t* bytes = at<uint8_t>(layout_.common.input);
  const bool pooled = block > 0 && blocks_[block - 1].pool == Pool::kAfterSign;
  const uint64_t* bits = nullptr;
  if (block > 0) {
    const PaperBlockLayout& below = layout_.blocks[block - 1];
    bits = at<uint64_t>(pooled ? below.pooled : below.negative);
  }
  const size_t pixel_words = static_cast<size_t>(words_for(blocks_[block].in_channels));
  return [this, channels, bytes, bits, pixel_words](size_t pixel, int channel, int count, float* out) {
    if (bits == nullptr) {
      kernels_.centre_bytes(bytes + pixel * channels + channel, count, 1.0f / 255.0f, out);
    } else {
      kernels_.expand_bits(bits + pixel * pixel_words, channel, count, out);
    }
  };
}

inline auto PaperEngine::weights_of(size_t block) const {
  const uint16_t* weights = at<uint16_t>(layout_.blocks[block].weights);
  const size_t fan_in = static_cast<size_t>(blocks_[block].fan_in());
  return [this, weights, fan_in](int output, int k, int count, float* out) {
    kernels_.half_signs(weights + static_cast<size_t>(output) * fan_in + k, count, out);
  };
}

inline auto PaperEngine::gradients_of(size_t block) const {
  const uint16_t* grad_y = at<uint16_t>(layout_.map_b);
  const size_t channels = static_cast<size_t>(blocks_[block].out_channels);
  return [this, grad_y, channels](int row, int channel, int count, float* out) {
    kernels_.widen(grad_y + static_cast<size_t>(row) * channels + channel, count, out);
  };
}

template <typename Work>
void PaperEngine::widen_rows(const uint16_t* map, int channels, int rows, int first, int some, Work work) const {
  float values[kRowsAtOnce * kChannelGroup];
  for (int row = 0; row < rows; row += kRowsAtOnce) {
    const int count = std::min(kRowsAtOnce, rows - row);
    for (int i = 0; i < count; ++i) {
      kernels_.widen(map + static_cast<size_t>(row + i) * static_cast<size_t>(channels) + first, some,
                     values + i * some);
    }
    work(row, count, values);
  }
}

// Calls visit(channel) for every set bit of a position's words.
template <typename Visit>
void for_each_bit(uint64_t word, size_t first_channel, Visit visit) {
  for (; word != 0; word &= word - 1) visit(first_channel + static_cast<size_t>(std::countr_zero(word)));
}

// The bits of the channels that a position has in word `w`.
inline uint64_t bits_in_word(int channels, size_t w) {
  const int left = channels - static_cast<int>(w) * kWordBits;
  return left >= kWordBits ? ~uint64_t{0} : (uint64_t{1} << left) - 1;
}

}  // namespace bitfleet
