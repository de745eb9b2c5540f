#include "../engine/maps.h"

#include <algorithm>
#include <cstring>
#include <vector>

#include "bnncore/packing.h"
#include "bnncore/sign_maps.h"
#include "bnncore/thread_pool.h"

namespace bitfleet {

namespace {

constexpr size_t kProductsBytes = 16 << 10;  // of a strip: they are transposed while the cache has them
constexpr size_t kCopiedWords = 2;           // gather_planes may read so many past the map

// Sixty-four bits of `bytes` from bit `first` on; what lies past `end` is not read and counts as 0.
uint64_t bits_at(const uint8_t* bytes, size_t first, size_t end) {
  const size_t from = first / 8, size = std::min<size_t>(9, (end + 7) / 8 - from);
  uint8_t window[16] = {};
  std::memcpy(window, bytes + from, size);
  uint64_t low;
  std::memcpy(&low, window, sizeof low);
  const unsigned shift = first % 8;
  return shift == 0 ? low : low >> shift | uint64_t{window[8]} << (kWordBits - shift);
}

// One sample's map with whole words for each pixel.
void align_pixels(const BlockSpec& conv, const uint8_t* map, uint64_t* words) {
  const size_t channels = static_cast<size_t>(conv.in_channels), pixels = static_cast<size_t>(conv.in_positions());
  if (channels % kWordBits == 0) {
    std::memcpy(words, map, pixels * channels / 8);
    return;
  }
  for (size_t pixel = 0; pixel < pixels; ++pixel) {
    const size_t end = (pixel + 1) * channels;
    for (size_t bit = pixel * channels; bit < end; bit += kWordBits) {
      const size_t used = std::min<size_t>(kWordBits, end - bit);
      const uint64_t mask = used == kWordBits ? ~uint64_t{0} : (uint64_t{1} << used) - 1;
      *words++ = bits_at(map, bit, end) & mask;
    }
  }
}

// from [channels][stride], of which `count` are in use, to [count][channels].
void transpose(const int16_t* from, size_t stride, size_t count, size_t channels, int16_t* to) {
  constexpr size_t kBlock = 8;
  for (size_t c = 0; c < channels; c += kBlock) {
    for (size_t p = 0; p < count; p += kBlock) {
      if (c + kBlock <= channels && p + kBlock <= count) {
        int16_t block[kBlock][kBlock];
        for (size_t i = 0; i < kBlock; ++i) std::memcpy(block[i], from + (c + i) * stride + p, sizeof block[i]);
        for (size_t j = 0; j < kBlock; ++j) {
          int16_t row[kBlock];
          for (size_t i = 0; i < kBlock; ++i) row[i] = block[i][j];
          std::memcpy(to + (p + j) * channels + c, row, sizeof row);
        }
        continue;
      }
      for (size_t i = c; i < std::min(c + kBlock, channels); ++i) {
        for (size_t j = p; j < std::min(p + kBlock, count); ++j) to[j * channels + i] = from[i * stride + j];
      }
    }
  }
}

// What padding, read as +1, adds to each product: [out channels][conv positions].
std::vector<int16_t> padding_of(const BlockSpec& conv, const uint64_t* packed) {
  std::vector<int16_t> padding;
  if (conv.padded_height() == conv.in_height && conv.padded_width() == conv.in_width) return padding;
  const size_t words = static_cast<size_t>(words_for(conv.in_channels)), taps = static_cast<size_t>(conv.taps());
  const size_t positions = static_cast<size_t>(conv.conv_positions());
  padding.resize(static_cast<size_t>(conv.out_channels) * positions);
  std::vector<int32_t> sums(taps);
  for (size_t row = 0; row < static_cast<size_t>(conv.out_channels); ++row) {
    sign_sums(conv, packed + row * taps * words, words, sums.data());
    padding_sums(conv, sums.data(), padding.data() + row * positions);
  }
  return padding;
}

// One thread's part: strips of lines of the product map. Planes are shifted (see PanelShape), so that positions lie
// side by side whatever the width and the stride.
class Strips {
 public:
  Strips(const Kernels& kernels, const BlockSpec& conv, int lines, const uint64_t* packed, const int16_t* padding)
      : kernels_(kernels),
        conv_(conv),
        lines_(lines),
        packed_(packed),
        padding_(padding),
        shape_(conv, true, lines, conv.conv_width),
        words_(static_cast<size_t>(words_for(conv.in_channels))),
        map_(words_ * static_cast<size_t>(conv.in_positions()) + kCopiedWords),
        planes_(shape_.size(words_) + 2 * kPanelLanes),
        products_(static_cast<size_t>(conv.out_channels) * static_cast<size_t>(lines * conv.conv_width)),
        offsets_(static_cast<size_t>(conv.taps()) * words_) {
    panel_offsets(conv, shape_, words_, offsets_.data());
  }

  void take(const uint8_t* map) { align_pixels(conv_, map, map_.data()); }

  // Products of `lines` lines of the map that was taken, from line `first` on.
  void multiply(int first, int16_t* products) {
    const int lines = std::min(lines_, conv_.conv_height - first), count = lines * conv_.conv_width;
    gather_panel(kernels_.gather_planes, conv_, shape_, lines_, map_.data(), words_, first, lines, 0, planes_.data());
    const size_t stride = static_cast<size_t>(lines_ * conv_.conv_width);
    const int16_t* excess = padding_ == nullptr ? nullptr : padding_ + first * conv_.conv_width;
    kernels_.xnor_gemm({planes_.data(), offsets_.data(), shape_.pitch, shape_.pitch}, count, packed_, offsets_.size(),
                       conv_.out_channels, static_cast<int>(offsets_.size()), conv_.fan_in(), excess,
                       static_cast<size_t>(conv_.conv_positions()), products_.data(), stride);
    transpose(products_.data(), stride, static_cast<size_t>(count), static_cast<size_t>(conv_.out_channels), products);
  }

 private:
  const Kernels& kernels_;
  const BlockSpec& conv_;
  int lines_;
  const uint64_t* packed_;
  const int16_t* padding_;
  PanelShape shape_;
  size_t words_;
  std::vector<uint64_t> map_, planes_;
  std::vector<int16_t> products_;
  std::vector<int32_t> offsets_;
};

}  // namespace

void pack_sign_weights(const Kernels& kernels, const BlockSpec& conv, const int8_t* weights, uint64_t* packed) {
  const size_t words = static_cast<size_t>(words_for(conv.in_channels));
  const size_t pixels = static_cast<size_t>(conv.out_channels) * static_cast<size_t>(conv.taps());
  for (size_t i = 0; i < pixels; ++i) {
    kernels.pack_int8(weights + i * static_cast<size_t>(conv.in_channels), conv.in_channels, packed + i * words);
  }
}

void multiply_sign_maps(const Kernels& kernels, const BlockSpec& conv, const uint8_t* maps, size_t map_bytes, int count,
                        const uint64_t* packed, int threads, int16_t* products) {
  const std::vector<int16_t> padding = padding_of(conv, packed);
  const size_t line_bytes =
      static_cast<size_t>(conv.out_channels) * static_cast<size_t>(conv.conv_width) * sizeof(int16_t);
  const int lines = std::clamp(static_cast<int>(kProductsBytes / line_bytes), 1, conv.conv_height);
  const int strips = (conv.conv_height + lines - 1) / lines, all = count * strips;
  ThreadPool pool(std::clamp(threads, 1, std::max(1, all)));
  std::vector<Strips> parts;
  for (int i = 0; i < pool.num_threads(); ++i) {
    parts.emplace_back(kernels, conv, lines, packed, padding.empty() ? nullptr : padding.data());
  }
  pool.run([&](int member) {
    Strips& work = parts[static_cast<size_t>(member)];
    const Range mine = partition(all, pool.num_threads(), member);
    for (int i = mine.begin, taken = -1; i < mine.end; ++i) {
      const int sample = i / strips, first = i % strips * lines;
      if (sample != taken) work.take(maps + static_cast<size_t>(sample) * map_bytes);
      taken = sample;
      const size_t position = static_cast<size_t>(sample) * static_cast<size_t>(conv.conv_positions()) +
                              static_cast<size_t>(first * conv.conv_width);
      work.multiply(first, products + position * static_cast<size_t>(conv.out_channels));
    }
  });
}

}  // namespace bitfleet
