// Shortcuts: the mean of the stream's windows through a real-valued 1 x 1 convolution.
#include <algorithm>
#include <cmath>

#include "bnncore/residual_engine.h"
#include "planes.h"

namespace bitfleet {

void ResidualEngine::prepare_shortcut(size_t block) {
  const BlockSpec& conv = unit(block).shortcut.conv;
  // Sums of gradients times weights, and of low bytes times weights, fit 31 bits.
  const int64_t most = std::max(int64_t{127} * conv.out_channels, int64_t{256} * conv.in_channels);
  prepare_real(conv, more_.shortcuts[block], kStreamMax, most, kShortcutBits);
}

// The mean of each window of a sample's stream above the unit, halves rounded up: [channels][positions].
void ResidualEngine::pool_stream(size_t block, int sample, int16_t* planes) const {
  const UnitSpec& u = unit(block);
  const BlockSpec& spec = blocks_[block];
  const BlockSpec& conv = u.shortcut.conv;
  const int height = u.shortcut.pool_height, width = u.shortcut.pool_width, count = height * width;
  for (int c = 0; c < conv.in_channels; ++c) {
    const int16_t* map = stream_row(u.stage - 1, c) + static_cast<size_t>(sample) * spec.in_positions();
    for (int row = 0; row < conv.in_height; ++row) {
      for (int column = 0; column < conv.in_width; ++column) {
        const int16_t* corner = map + row * height * spec.in_width + column * width;
        int32_t sum = 0;
        for (int i = 0; i < height; ++i) {
          for (int j = 0; j < width; ++j) sum += corner[i * spec.in_width + j];
        }
        *planes++ = static_cast<int16_t>(floor_divide(int64_t{2} * sum + count, int64_t{2} * count));
      }
    }
  }
}

// y [channels][batch x positions]: products in two parts, of the high and the low bytes, each of which fits 32 bits.
void ResidualEngine::multiply_shortcut(size_t block, Range channels, int count, int member, int32_t* y) const {
  const BlockSpec& conv = unit(block).shortcut.conv;
  const ResidualScratch& scratch = more_.scratch[static_cast<size_t>(member)];
  const int positions = conv.conv_positions(), terms = conv.in_channels;
  const size_t stride = static_cast<size_t>(geometry(block).y_stride);
  const size_t plane_values = static_cast<size_t>(terms) * static_cast<size_t>(positions);
  int16_t* high = at<int16_t>(scratch.planes);
  int16_t* low = high + plane_values;
  int32_t* sums = at<int32_t>(scratch.sums);
  int32_t* offsets = at<int32_t>(scratch.offsets);
  for (int t = 0; t < terms; ++t) offsets[t] = t * positions;
  for (int b = 0; b < count; ++b) {
    pool_stream(block, b, high);
    for (size_t i = 0; i < plane_values; ++i) {
      low[i] = static_cast<int16_t>(high[i] & 255);
      high[i] = static_cast<int16_t>(high[i] >> 8);
    }
    for (int c = channels.begin; c < channels.end; ++c) {
      const int16_t* weights = at<int16_t>(more_.integers) + static_cast<size_t>(c) * terms;
      int32_t* out = y + static_cast<size_t>(c - channels.begin) * stride + static_cast<size_t>(b) * positions;
      kernels_.fixed_point->multiply(high, offsets, weights, terms, positions, sums);
      kernels_.fixed_point->multiply(low, offsets, weights, terms, positions, sums + positions);
      for (int i = 0; i < positions; ++i) {
        out[i] = static_cast<int32_t>((int64_t{sums[i]} * 256 + sums[positions + i]) >> fixed_.shift);
      }
    }
  }
}

void ResidualEngine::run_shortcut(size_t block, bool measure, float step_scale) {
  const int channels = blocks_[block].out_channels, groups = (channels + kTileRows - 1) / kTileRows;
  pool_.run([&](int member) {
    TileResult total{};
    const Range range = partition(groups, num_threads(), member);
    for (int group = range.begin; group < range.end; ++group) {
      const Range some{group * kTileRows, std::min((group + 1) * kTileRows, channels)};
      total.add(backward_shortcut(block, some, measure, step_scale, member));
    }
    results_[static_cast<size_t>(member)] = total;
  });
  const TileResult total = sum_of_members();
  BlockScales& scales = side_scales(block);
  if (measure) {
    scales.max_grad_y = total.max_abs / optimizer_.headroom;
    return;
  }
  saturated_ += total.saturated;
  scales.scale_x = scale_of(scales.max_grad_y);  // what the gradients in the slot are worth
  scales.max_grad_y = std::max(total.max_abs, scales.max_grad_y * optimizer_.scale_decay);
}

// The gradient of some channels' products into its slot; trains their weights.
Engine::TileResult ResidualEngine::backward_shortcut(size_t block, Range channels, bool measure, float step_scale,
                                                     int member) {
  const BlockSpec& conv = unit(block).shortcut.conv;
  const ResidualScratch& scratch = more_.scratch[static_cast<size_t>(member)];
  const NormLayout& norm = more_.shortcut_norms[block];
  const RealLayout& parameter = more_.shortcuts[block];
  const int positions = conv.conv_positions(), values = batch_size_ * positions, terms = conv.in_channels;
  const size_t stride = static_cast<size_t>(geometry(block).y_stride);
  int32_t* y = at<int32_t>(layout_.scratch[static_cast<size_t>(member)].y);
  int8_t* grads = at<int8_t>(more_.shortcut_grad) + static_cast<size_t>(channels.begin) * stride;
  multiply_shortcut(block, channels, batch_size_, member, y);
  load_stream_gradient(conv.out_channels, positions, channels, grads, stride);
  const float scale_y = scale_of(side_scales(block).max_grad_y);
  TileResult result{};
  for (int c = channels.begin; c < channels.end; ++c) {
    const size_t r = static_cast<size_t>(c - channels.begin);
    const ChannelStatistics statistics = kernels_.channel->wide.statistics(y + r * stride, values);
    result.add(norm_gradient(norm, c, y + r * stride, statistics, grads + r * stride, values,
                             int64_t{1} << kShortcutBits, gradient_scale_, scale_y, side_stream(block, Purpose::kGradY),
                             measure, step_scale, !measure));
  }
  if (measure) return result;

  int16_t* planes = at<int16_t>(scratch.planes);
  int16_t* grad_row = at<int16_t>(scratch.grad_row);
  const int32_t* offsets = at<int32_t>(scratch.offsets);
  int64_t* dots = at<int64_t>(scratch.dots);
  const int rows = channels.end - channels.begin;
  std::fill_n(dots, static_cast<size_t>(rows) * terms, int64_t{0});
  for (int b = 0; b < batch_size_; ++b) {
    pool_stream(block, b, planes);
    for (int r = 0; r < rows; ++r) {
      std::copy_n(grads + static_cast<size_t>(r) * stride + static_cast<size_t>(b) * positions, positions, grad_row);
      for (int first = 0; first < positions; first += kDotCount) {
        kernels_.fixed_point->dot(planes + first, offsets, terms, grad_row + first,
                                  std::min(kDotCount, positions - first), dots + static_cast<size_t>(r) * terms);
      }
    }
  }
  const double unit = std::ldexp(double{scale_y}, fixed_.exponent - fixed_.shift);
  train_dots(parameter, static_cast<size_t>(channels.begin) * terms, dots, static_cast<size_t>(rows) * terms, unit,
             step_scale);
  return result;
}

// A sample's gradient of the pooled stream, [in channels][positions], in the weights' and the gradient's units.
const int32_t* ResidualEngine::shortcut_inputs(size_t block, int sample, int32_t* scratch) const {
  const BlockSpec& conv = unit(block).shortcut.conv;
  const ShortcutStaged place = shortcut_staged(conv);
  const int positions = conv.conv_positions(), terms = conv.out_channels;
  const size_t stride = static_cast<size_t>(geometry(block).y_stride);
  uint8_t* bytes = reinterpret_cast<uint8_t*>(scratch);
  int32_t* sums = reinterpret_cast<int32_t*>(bytes + place.sums);
  int32_t* offsets = reinterpret_cast<int32_t*>(bytes + place.offsets);
  int16_t* column = reinterpret_cast<int16_t*>(bytes + place.column);
  int16_t* planes = reinterpret_cast<int16_t*>(bytes + place.planes);
  for (int n = 0; n < terms; ++n) {
    offsets[n] = n * positions;
    std::copy_n(
        at<int8_t>(more_.shortcut_grad) + static_cast<size_t>(n) * stride + static_cast<size_t>(sample) * positions,
        positions, planes + static_cast<size_t>(n) * positions);
  }
  for (int c = 0; c < conv.in_channels; ++c) {
    const int16_t* weights = at<int16_t>(more_.integers) + c;
    for (int n = 0; n < terms; ++n) column[n] = weights[static_cast<size_t>(n) * conv.in_channels];
    kernels_.fixed_point->multiply(planes, offsets, column, terms, positions,
                                   sums + static_cast<size_t>(c) * positions);
  }
  return sums;
}

}  // namespace bitfleet
