// The stem: products of real weights with 8-bit input for a few channels of the whole batch, and the way back to them.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bnncore/residual_engine.h"
#include "planes.h"

namespace bitfleet {

void ResidualEngine::fill_planes(int sample, int16_t* planes) const {
  const BlockSpec& conv = network_.stem.conv;
  const StemPlanes p = stem_planes(conv);
  const int channels = conv.in_channels;
  const uint8_t* map = at<uint8_t>(layout_.input) + static_cast<size_t>(sample) * conv.in_features();
  std::fill_n(planes, p.size(), int16_t{0});
  for (int row = conv.pad_height; row < std::min(p.height, conv.pad_height + conv.in_height); ++row) {
    const uint8_t* source = map + static_cast<size_t>(row - conv.pad_height) * conv.in_width * channels;
    for (int phase = 0; phase < p.stride; ++phase) {
      // Column i of the plane is column i * stride + phase of the padded map.
      const int first = (std::max(0, conv.pad_width - phase) + p.stride - 1) / p.stride;
      const int last = std::min(p.width, (conv.pad_width + conv.in_width - phase + p.stride - 1) / p.stride);
      for (int c = 0; c < channels; ++c) {
        int16_t* __restrict target = planes + static_cast<size_t>(c * p.stride + phase) * p.plane() + row * p.width;
        const uint8_t* __restrict u = source + (first * p.stride + phase - conv.pad_width) * channels + c;
        for (int i = first; i < last; ++i, u += p.stride * channels) target[i] = static_cast<int16_t>(2 * *u - 255);
      }
    }
  }
}

// y [channels][batch x positions], stride that of the whole batch.
void ResidualEngine::multiply_stem(Range channels, int count, int member, int16_t* y) const {
  const BlockSpec& conv = network_.stem.conv;
  const ResidualScratch& scratch = more_.scratch[static_cast<size_t>(member)];
  const StemPlanes p = stem_planes(conv);
  int16_t* planes = at<int16_t>(scratch.planes);
  int32_t* offsets = at<int32_t>(scratch.offsets);
  int32_t* sums = at<int32_t>(scratch.sums);
  stem_offsets(conv, offsets);
  const size_t positions = static_cast<size_t>(conv.conv_positions());
  const size_t stride = round_up(static_cast<size_t>(batch_size_) * positions, 16);
  for (int b = 0; b < count; ++b) {
    fill_planes(b, planes);
    for (int c = channels.begin; c < channels.end; ++c) {
      const int16_t* weights = at<int16_t>(more_.integers) + static_cast<size_t>(c) * conv.fan_in();
      int16_t* out = y + static_cast<size_t>(c - channels.begin) * stride + static_cast<size_t>(b) * positions;
      for (int row = 0; row < conv.conv_height; ++row, out += conv.conv_width) {
        kernels_.fixed_point->multiply(planes + static_cast<size_t>(row * conv.stride * p.width), offsets, weights,
                                       conv.fan_in(), conv.conv_width, sums);
        for (int i = 0; i < conv.conv_width; ++i) out[i] = static_cast<int16_t>(sums[i] >> fixed_.shift);
      }
    }
  }
}

// The largest of each window inside the map, the first of equal ones.
void ResidualEngine::pool_stem(const int16_t* y, int count, int16_t* pooled, uint8_t* choice) const {
  const StemSpec& s = network_.stem;
  const int height = s.conv.conv_height, width = s.conv.conv_width;
  for (int b = 0; b < count; ++b, y += s.conv.conv_positions()) {
    for (int row = 0; row < s.out_height; ++row) {
      const int top = row * s.pool_stride_height - s.pool_pad_height;
      const int first_row = std::max(0, -top), last_row = std::min(s.pool_height, height - top);
      for (int column = 0; column < s.out_width; ++column, ++pooled, ++choice) {
        const int left = column * s.pool_stride_width - s.pool_pad_width;
        const int first = std::max(0, -left), last = std::min(s.pool_width, width - left);
        int best = std::numeric_limits<int>::min(), element = 0;
        for (int i = first_row; i < last_row; ++i) {
          const int16_t* source = y + (top + i) * width + left;
          for (int j = first; j < last; ++j) {
            const bool larger = source[j] > best;
            best = larger ? source[j] : best;
            element = larger ? i * s.pool_width + j : element;
          }
        }
        *pooled = static_cast<int16_t>(best);
        *choice = static_cast<uint8_t>(element);
      }
    }
  }
}

// Adds each gradient to the element that its window chose: what several windows give is kept within 8 bits.
void ResidualEngine::unpool_stem(const int8_t* grad, const uint8_t* choice, int8_t* out, int64_t& saturated,
                                 int member) const {
  const StemSpec& s = network_.stem;
  int16_t* map = at<int16_t>(more_.scratch[static_cast<size_t>(member)].grad_row);
  const size_t positions = static_cast<size_t>(s.conv.conv_positions());
  for (int b = 0; b < batch_size_; ++b, out += positions) {
    std::fill_n(map, positions, int16_t{0});
    for (int row = 0; row < s.out_height; ++row) {
      for (int column = 0; column < s.out_width; ++column, ++grad, ++choice) {
        const int in_row = row * s.pool_stride_height - s.pool_pad_height + *choice / s.pool_width;
        const int in_column = column * s.pool_stride_width - s.pool_pad_width + *choice % s.pool_width;
        int16_t& target = map[in_row * s.conv.conv_width + in_column];
        target = static_cast<int16_t>(target + *grad);
      }
    }
    for (size_t i = 0; i < positions; ++i) {
      saturated += map[i] > 127 || map[i] < -127;
      out[i] = static_cast<int8_t>(std::clamp<int>(map[i], -127, 127));
    }
  }
}

// Behind the first norm: relu, and the range of the stream, or of the numbers that the second norm takes.
Scaling ResidualEngine::inner_scaling(const ChannelMoments& moments, float beta) const {
  const StemSpec& s = network_.stem;
  Scaling scaling = stream_scaling(moments, beta, s.second_norm.empty() ? s.limit : kStreamMax);
  if (s.relu) {
    scaling.low = 0.0f;
    scaling.least = -std::numeric_limits<float>::infinity();
  }
  return scaling;
}

int64_t ResidualEngine::forward_stem(Range channels, int count, float kept, int member) {
  const StemSpec& s = network_.stem;
  const ResidualScratch& scratch = more_.scratch[static_cast<size_t>(member)];
  const int positions = s.conv.conv_positions(), values = count * positions, outputs = count * s.out_positions();
  const size_t stride = round_up(static_cast<size_t>(batch_size_) * static_cast<size_t>(positions), 16);
  int16_t* y = at<int16_t>(layout_.scratch[static_cast<size_t>(member)].y);
  multiply_stem(channels, count, member, y);
  int64_t saturated = 0;
  for (int c = channels.begin; c < channels.end; ++c) {
    const int16_t* row = y + static_cast<size_t>(c - channels.begin) * stride;
    const ChannelStatistics statistics =
        kept >= 0.0f ? kernels_.channel->narrow.statistics(row, values) : ChannelStatistics{};
    const ChannelMoments moments =
        moments_of(more_.stem_norm, c, statistics, values, fixed_.exponent - fixed_.shift, kept);
    const Scaling scaling = inner_scaling(moments, at<float>(more_.stem_norm.beta.value)[c]);
    if (s.pools) {
      int16_t* pooled = at<int16_t>(scratch.pooled);
      pool_stem(row, count, pooled, at<uint8_t>(scratch.choice));
      row = pooled;
    }
    int16_t* inner = s.second_norm.empty() ? stream_row(0, c) : at<int16_t>(scratch.inner);
    saturated += kernels_.fixed_point->normalise_narrow(row, outputs, scaling, inner);
    if (s.second_norm.empty()) continue;
    const ChannelStatistics second =
        kept >= 0.0f ? kernels_.channel->narrow.statistics(inner, outputs) : ChannelStatistics{};
    const ChannelMoments inner_moments = moments_of(more_.second_norm, c, second, outputs, kStreamBits, kept);
    saturated += kernels_.fixed_point->normalise_narrow(
        inner, outputs, stream_scaling(inner_moments, at<float>(more_.second_norm.beta.value)[c], s.limit),
        stream_row(0, c));
  }
  return saturated;
}

void ResidualEngine::run_stem(StemPass pass, float step_scale) {
  const int channels = network_.stem.conv.out_channels, rows = stem_rows(network_.stem.conv, batch_size_);
  const int tiles = (channels + rows - 1) / rows;
  pool_.run([&](int member) {
    StemResult total{};
    const Range range = partition(tiles, num_threads(), member);
    for (int tile = range.begin; tile < range.end; ++tile) {
      const Range some{tile * rows, std::min((tile + 1) * rows, channels)};
      const StemResult part = backward_stem(some, pass, step_scale, member);
      total.second_max = std::max(total.second_max, part.second_max);
      total.first_max = std::max(total.first_max, part.first_max);
      total.saturated += part.saturated;
    }
    stems_[static_cast<size_t>(member)] = total;
  });
  StemResult total{};
  for (const StemResult& part : stems_) {
    total.second_max = std::max(total.second_max, part.second_max);
    total.first_max = std::max(total.first_max, part.first_max);
    total.saturated += part.saturated;
  }
  // The scale of the first norm's gradient is block 0's of grad_y, the second's its own of grad_x.
  BlockScales& scales = at<BlockScales>(layout_.scales)[0];
  switch (pass) {
    case StemPass::kMeasureSecond:
      scales.max_grad_x = total.second_max / optimizer_.headroom;
      break;
    case StemPass::kMeasureFirst:
      scales.max_grad_y = total.first_max / optimizer_.headroom;
      break;
    case StemPass::kTrain:
      saturated_ += total.saturated;
      scales.max_grad_y = std::max(total.first_max, scales.max_grad_y * optimizer_.scale_decay);
      if (!network_.stem.second_norm.empty()) {
        scales.max_grad_x = std::max(total.second_max, scales.max_grad_x * optimizer_.scale_decay);
      }
      break;
  }
}

ResidualEngine::StemResult ResidualEngine::backward_stem(Range channels, StemPass pass, float step_scale, int member) {
  const StemSpec& s = network_.stem;
  const ResidualScratch& scratch = more_.scratch[static_cast<size_t>(member)];
  const int positions = s.conv.conv_positions(), values = batch_size_ * positions;
  const int outputs = batch_size_ * s.out_positions();
  const size_t stride = round_up(static_cast<size_t>(values), 16);
  const size_t out_stride = round_up(static_cast<size_t>(outputs), 16);
  int16_t* y = at<int16_t>(layout_.scratch[static_cast<size_t>(member)].y);
  int8_t* grads = at<int8_t>(scratch.grad);
  multiply_stem(channels, batch_size_, member, y);
  load_stream_gradient(s.conv.out_channels, s.out_positions(), channels, grads, out_stride);
  // Where there is no pool, the gradients of the first norm's outputs are where the stream's were.
  int8_t* wholes = s.pools ? at<int8_t>(layout_.scratch[static_cast<size_t>(member)].grad_t) : grads;
  const size_t whole_stride = s.pools ? stride : out_stride;
  const BlockScales& scales = at<BlockScales>(layout_.scales)[0];
  StemResult result{};
  for (int c = channels.begin; c < channels.end; ++c) {
    const int16_t* row = y + static_cast<size_t>(c - channels.begin) * stride;
    int8_t* grad = grads + static_cast<size_t>(c - channels.begin) * out_stride;
    const ChannelStatistics statistics = kernels_.channel->narrow.statistics(row, values);
    const Scaling scaling =
        inner_scaling(channel_moments(statistics, values), at<float>(more_.stem_norm.beta.value)[c]);
    const int16_t* source = row;
    uint8_t* choice = at<uint8_t>(scratch.choice);
    if (s.pools) {
      pool_stem(row, batch_size_, at<int16_t>(scratch.pooled), choice);
      source = at<int16_t>(scratch.pooled);
    }
    int16_t* inner = at<int16_t>(scratch.inner);
    kernels_.fixed_point->normalise_narrow(source, outputs, scaling, inner);
    float scale = gradient_scale_;
    if (!s.second_norm.empty()) {
      const float unit = scale_of(scales.max_grad_x);
      const TileResult second =
          norm_gradient(more_.second_norm, c, inner, kernels_.channel->narrow.statistics(inner, outputs), grad, outputs,
                        kStreamMax, scale, unit, side_stream(0, Purpose::kGradY), pass == StemPass::kMeasureSecond,
                        step_scale, pass == StemPass::kTrain);
      result.second_max = std::max(result.second_max, second.max_abs);
      result.saturated += second.saturated;
      if (pass == StemPass::kMeasureSecond) continue;
      scale = unit * static_cast<float>(kStreamUnits);
    }
    if (s.relu) {
      for (int i = 0; i < outputs; ++i) grad[i] = inner[i] > 0 ? grad[i] : int8_t{0};
    }
    int8_t* whole = wholes + static_cast<size_t>(c - channels.begin) * whole_stride;
    if (s.pools) {
      unpool_stem(grad, choice, whole, result.saturated, member);
    }
    const TileResult first = norm_gradient(more_.stem_norm, c, row, statistics, whole, values, 1 << kStemBits, scale,
                                           scale_of(scales.max_grad_y), stream(0, Purpose::kGradY),
                                           pass == StemPass::kMeasureFirst, step_scale, pass == StemPass::kTrain);
    result.first_max = std::max(result.first_max, first.max_abs);
    result.saturated += first.saturated;
  }
  if (pass == StemPass::kTrain) stem_weights(channels, wholes, whole_stride, member, step_scale);
  return result;
}

// Trains the weights of some channels from the gradients of their products, [channels][stride].
void ResidualEngine::stem_weights(Range channels, const int8_t* grads, size_t stride, int member,
                                  float step_scale) const {
  const BlockSpec& conv = network_.stem.conv;
  const ResidualScratch& scratch = more_.scratch[static_cast<size_t>(member)];
  const StemPlanes p = stem_planes(conv);
  int16_t* planes = at<int16_t>(scratch.planes);
  int16_t* row_grad = at<int16_t>(scratch.grad_row);
  const int32_t* offsets = at<int32_t>(scratch.offsets);
  int64_t* dots = at<int64_t>(scratch.dots);
  const int terms = conv.fan_in(), rows = channels.end - channels.begin;
  std::fill_n(dots, static_cast<size_t>(rows) * terms, int64_t{0});
  for (int b = 0; b < batch_size_; ++b) {
    fill_planes(b, planes);
    for (int r = 0; r < rows; ++r) {
      const int8_t* grad = grads + static_cast<size_t>(r) * stride + static_cast<size_t>(b) * conv.conv_positions();
      for (int row = 0; row < conv.conv_height; ++row, grad += conv.conv_width) {
        for (int start = 0; start < conv.conv_width; start += kDotCount) {
          const int some = std::min(kDotCount, conv.conv_width - start);
          std::copy_n(grad + start, some, row_grad);
          kernels_.fixed_point->dot(planes + static_cast<size_t>(row * conv.stride * p.width + start), offsets, terms,
                                    row_grad, some, dots + static_cast<size_t>(r) * terms);
        }
      }
    }
  }
  const double unit =
      std::ldexp(double{scale_of(at<BlockScales>(layout_.scales)[0].max_grad_y)}, fixed_.exponent - fixed_.shift);
  train_dots(more_.stem, static_cast<size_t>(channels.begin) * terms, dots, static_cast<size_t>(rows) * terms, unit,
             step_scale);
}

}  // namespace bitfleet
