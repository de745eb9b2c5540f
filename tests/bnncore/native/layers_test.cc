// What bnncore.nn computes natively: convolutions on bits and batch norm's passes over rows, against plain sums.
#include <cstdlib>

#include "bnncore/norm_rows.h"
#include "bnncore/sign_maps.h"
#include "check.h"

namespace bitfleet::test {

namespace {

BlockSpec convolution(int height, int width, int channels, int outputs, int kernel_height, int kernel_width, int stride,
                      int pad_height, int pad_width) {
  BlockSpec conv{};
  conv.in_height = height, conv.in_width = width, conv.in_channels = channels, conv.out_channels = outputs;
  conv.kernel_height = kernel_height, conv.kernel_width = kernel_width, conv.stride = stride;
  conv.pad_height = pad_height, conv.pad_width = pad_width;
  conv.conv_height = (height + 2 * pad_height - kernel_height) / stride + 1;
  conv.conv_width = (width + 2 * pad_width - kernel_width) / stride + 1;
  conv.pool = Pool::kNone, conv.pool_height = conv.pool_width = 1;
  return conv;
}

int plain_product(const BlockSpec& conv, const Array<int8_t>& x, const Array<int8_t>& w, int position, int output) {
  int sum = 0;
  for (int tap = 0; tap < conv.taps(); ++tap) {
    const int row = position / conv.conv_width * conv.stride + tap / conv.kernel_width - conv.pad_height;
    const int column = position % conv.conv_width * conv.stride + tap % conv.kernel_width - conv.pad_width;
    if (row < 0 || row >= conv.in_height || column < 0 || column >= conv.in_width) continue;
    for (int c = 0; c < conv.in_channels; ++c) {
      sum += x[static_cast<size_t>((row * conv.in_width + column) * conv.in_channels + c)] *
             w[static_cast<size_t>((output * conv.taps() + tap) * conv.in_channels + c)];
    }
  }
  return sum;
}

void check_convolution(const Kernels& kernels, const BlockSpec& conv, int threads, Random& random) {
  constexpr size_t kSamples = 2;
  const size_t features = static_cast<size_t>(conv.in_features()), map_bytes = (features + 7) / 8;
  const size_t positions = static_cast<size_t>(conv.conv_positions()), outputs = static_cast<size_t>(conv.out_channels);
  Array<int8_t> w(conv.num_weights(), 1);
  w.generate([&] { return random.between(0, 1) == 0 ? 1 : -1; });
  Array<uint8_t> maps(kSamples * map_bytes, 1);
  Array<int16_t> y(kSamples * positions * outputs, 1), wanted(y.size(), 1);
  for (size_t b = 0; b < kSamples; ++b) {
    Array<int8_t> x(features, 1);
    x.generate([&] { return random.between(0, 1) == 0 ? 1 : -1; });
    for (size_t i = 0; i < map_bytes; ++i) maps[b * map_bytes + i] = 0;
    for (size_t i = 0; i < features; ++i) {
      if (x[i] < 0) maps[b * map_bytes + i / 8] |= static_cast<uint8_t>(1 << i % 8);
    }
    for (size_t p = 0; p < positions; ++p) {
      for (size_t n = 0; n < outputs; ++n) {
        wanted[(b * positions + p) * outputs + n] =
            static_cast<int16_t>(plain_product(conv, x, w, static_cast<int>(p), static_cast<int>(n)));
      }
    }
  }
  const size_t words = static_cast<size_t>(conv.taps()) * static_cast<size_t>(words_for(conv.in_channels));
  Array<uint64_t> packed(outputs * words, 1);
  pack_sign_weights(kernels, conv, w.data(), packed.data());
  multiply_sign_maps(kernels, conv, maps.data(), map_bytes, static_cast<int>(kSamples), packed.data(), threads,
                     y.data());
  CHECK_SAME(y, wanted,
             text(conv.in_height, " x ", conv.in_width, " x ", conv.in_channels, ", kernel ", conv.kernel_height, " x ",
                  conv.kernel_width, ", stride ", conv.stride, ", ", threads, " threads"));
}

}  // namespace

KERNEL_TEST(sign_maps) {
  Random random(2);
  for (int threads : {1, 3}) {
    for (int channels : {1, 7, 64, 65}) {
      check_convolution(kernels, convolution(5, 7, channels, 9, 3, 3, 1, 1, 1), threads, random);
      check_convolution(kernels, convolution(8, 6, channels, 5, 3, 3, 2, 1, 1), threads, random);
      check_convolution(kernels, convolution(4, 9, channels, 3, 1, 5, 1, 0, 2), threads, random);
      check_convolution(kernels, convolution(7, 7, channels, 4, 1, 1, 2, 0, 0), threads, random);
    }
    check_convolution(kernels, convolution(24, 40, 3, 40, 5, 2, 3, 3, 1), threads, random);
  }
}

TEST(norm_rows) {
  Random random(3);
  for (size_t rows : {size_t{1}, size_t{7}, size_t{1025}}) {
    for (size_t channels : {size_t{1}, size_t{5}, size_t{16}}) {
      Array<int16_t> y(rows * channels, 1);
      y.generate([&] { return static_cast<int16_t>(random.between(-32768, 32767)); });
      Array<int64_t> sum(channels, 1), wanted_sum(channels, 1);
      Array<double> deviation(channels, 1), wanted_deviation(channels, 1);
      const int64_t count = static_cast<int64_t>(rows);
      for (size_t c = 0; c < channels; ++c) {
        int64_t total = 0, apart = 0;
        for (size_t r = 0; r < rows; ++r) total += y[r * channels + c];
        for (size_t r = 0; r < rows; ++r) apart += std::abs(count * y[r * channels + c] - total);
        wanted_sum[c] = total, wanted_deviation[c] = static_cast<double>(apart);
      }
      row_statistics(y.data(), rows, channels, 2, sum.data(), deviation.data());
      CHECK_SAME(sum, wanted_sum, text(rows, " rows of ", channels));
      CHECK_SAME(deviation, wanted_deviation, text(rows, " rows of ", channels));
    }
  }
}

}  // namespace bitfleet::test
