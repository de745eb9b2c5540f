// Backward: scales, the exact l1 batch-norm gradient in 8 bits, and where a gradient lies in its map.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bnncore/engine.h"
#include "maps.h"

namespace bitfleet {

namespace {

// Zeroes `columns` bytes of each row; a call of memset for each would take longer than the rest.
void clear_columns(int8_t* map, size_t stride, int rows, int columns) {
  if (columns % 4 != 0) {
    for (int r = 0; r < rows; ++r) std::memset(map + r * stride, 0, static_cast<size_t>(columns));
    return;
  }
  for (int c = 0; c < columns; c += 4) {
    for (int r = 0; r < rows; ++r) std::memset(map + r * stride + c, 0, 4);
  }
}

}  // namespace

void Engine::backward_block(size_t block, float step_scale, Trace* trace) {
  BlockScales& scales = at<BlockScales>(layout_.scales)[block];
  const bool normalises = !is_float(optimizer_.kind);
  const double num_weights = static_cast<double>(blocks_[block].num_weights());

  // Scales come from the step before. Where there is none yet, exact passes measure first.
  if (!(scales.max_grad_y > 0.0f)) {
    scales.max_grad_y = run_tiles(block, /*measure=*/true, step_scale, nullptr).max_abs / optimizer_.headroom;
  }
  const double unit = std::ldexp(double{grad_y_scale(block)}, geometry(block).weight_grad_shift);
  const TileResult tiles = run_tiles(block, /*measure=*/false, step_scale, trace);
  saturated_ += tiles.saturated;

  const auto add_to_normaliser = [&](int64_t abs_sum) {
    scales.normaliser_sum += unit * static_cast<double>(abs_sum) / num_weights;
    ++scales.normaliser_count;
  };
  const bool measure_weights = normalises && scales.normaliser_count == 0;
  if (measure_weights) add_to_normaliser(run_weights(block, /*measure=*/true, step_scale, nullptr));
  int64_t abs_sum = 0;
  timed(&PhaseSeconds::grad_weights, 0, [&] { abs_sum = run_weights(block, /*measure=*/false, step_scale, trace); });
  if (normalises && !measure_weights && scales.normaliser_count < optimizer_.normaliser_steps) {
    add_to_normaliser(abs_sum);
  }

  if (block > 0) {
    if (!(scales.max_grad_x > 0.0f)) {
      scales.max_grad_x = run_inputs(block, /*measure=*/true, nullptr).max_abs / optimizer_.headroom;
    }
    scales.scale_x = scale_of(scales.max_grad_x);
    TileResult inputs{};
    timed(&PhaseSeconds::grad_inputs, 0, [&] { inputs = run_inputs(block, /*measure=*/false, trace); });
    saturated_ += inputs.saturated;
    scales.max_grad_x = std::max(inputs.max_abs, scales.max_grad_x * optimizer_.scale_decay);
  }
  scales.max_grad_y = std::max(tiles.max_abs, scales.max_grad_y * optimizer_.scale_decay);
}

Engine::TileResult Engine::run_tiles(size_t block, bool measure, float step_scale, Trace* trace) {
  const int rows = geometry(block).tile_rows;
  const int tiles = (blocks_[block].out_channels + rows - 1) / rows;
  pool_.run([&](int member) {
    TileResult total{};
    const Range range = partition(tiles, num_threads(), member);
    for (int tile = range.begin; tile < range.end; ++tile) {
      total.add(geometry(block).wide ? backward_tile<int32_t>(block, tile, measure, step_scale, member, trace)
                                     : backward_tile<int16_t>(block, tile, measure, step_scale, member, trace));
    }
    results_[member] = total;
  });
  return sum_of_members();
}

Engine::TileResult Engine::sum_of_members() const {
  TileResult total{};
  for (const TileResult& part : results_) total.add(part);
  return total;
}

// grad_y of a tile of channels, in 8 bits, into the slot; or only its largest magnitude.
template <typename Y>
Engine::TileResult Engine::backward_tile(size_t block, int tile, bool measure, float step_scale, int member,
                                         Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const ScratchLayout& scratch = layout_.scratch[member];
  const int first = tile * g.tile_rows;
  const int rows = std::min(g.tile_rows, spec.out_channels - first);
  const int values = norm_count(block, batch_size_);
  const int64_t y_bound = int64_t{spec.fan_in()} * (block == 0 ? 255 : 1);

  // Inner blocks keep their packed weights: the gradient for the layer below needs them as they were.
  uint64_t* kept = at<uint64_t>(layout_.packed_weights);
  const bool in_place = block > 0 && !g.whole_map;
  const uint64_t* weights =
      pack_rows(block, first, rows, in_place ? kept + first * g.row_words() : at<uint64_t>(scratch.weights));
  if (block > 0 && g.whole_map) {
    kernels_.transpose_words(weights, g.row_words(), rows, static_cast<int>(g.row_words()), kept + first,
                             static_cast<size_t>(spec.out_channels));
  }
  const ProductKernels<Y>& kernels = kernels_.channel->of<Y>();
  Y* y = at<Y>(scratch.y);
  uint8_t* choice = spec.pool == Pool::kBeforeNorm ? at<uint8_t>(scratch.choice) : nullptr;
  timed(&PhaseSeconds::recompute, member, [&] { multiply(block, weights, rows, batch_size_, member, y, choice); });
  int8_t* grad_t = at<int8_t>(scratch.grad_t);
  load_gradient(block, first, rows, grad_t);

  const float scale_in = grad_x_scale(block);
  const float scale_y = grad_y_scale(block);
  const RandomStream random = stream(block, Purpose::kGradY);
  const float* beta = at<float>(layout_.blocks[block].beta) + first;
  ChannelStatistics statistics_of[kTileRows];
  for (int r = 0; r < rows; ++r) statistics_of[r] = kernels.statistics(y + size_t(r) * g.y_stride, values);
  ChannelNorms norms;
  kernels_.channel->moments(statistics_of, values, rows, norms);
  kernels_.channel->thresholds(beta, rows, norms);
  float grad_beta[kTileRows];
  TileResult result{};
  for (int r = 0; r < rows; ++r) {
    const int channel = first + r;
    const Y* row = y + size_t(r) * g.y_stride;
    int8_t* grad = grad_t + size_t(r) * g.y_stride;
    const ChannelStatistics& statistics = statistics_of[r];
    ChannelThresholds thresholds = norms.thresholds(r);
    if (block + 1 == block_count()) {  // softmax follows, not a sign: every sample passes
      thresholds.mask_from = std::numeric_limits<int32_t>::min();
      thresholds.mask_to = std::numeric_limits<int32_t>::max();
    }
    if (spec.pool == Pool::kAfterSign) route_to_first_positive(block, channel, row, thresholds.sign_from, grad);
    const int64_t floor_mean = floor_divide(statistics.sum, values);
    const GradientSums sums =
        kernels.gradient_sums(row, grad, values, y_bound, thresholds, static_cast<int32_t>(floor_mean),
                              floor_mean * values == statistics.sum);
    if (trace != nullptr) {
      BlockTrace& t = trace->blocks[block];
      std::copy_n(row, values, t.y_again.begin() + size_t(channel) * values);
      t.sums[2 * channel] = statistics.sum;
      t.sums[2 * channel + 1] = statistics.abs_deviation;
      t.thresholds[3 * channel] = thresholds.sign_from;
      t.thresholds[3 * channel + 1] = thresholds.mask_from;
      t.thresholds[3 * channel + 2] = thresholds.mask_to;
    }
    if (statistics.abs_deviation == 0) {
      std::memset(grad, 0, static_cast<size_t>(values));
    } else {
      const GradientCoefficients coefficients =
          gradient_coefficients(statistics, floor_mean, norms.mean_abs_dev[r], thresholds, sums, values);
      const float real_gain = static_cast<float>(double{scale_in} / norms.mean_abs_dev[r]);
      if (measure) {
        const float largest = kernels.gradient_max(row, grad, values, coefficients);
        result.max_abs = std::max(result.max_abs, largest * real_gain);
        continue;
      }
      const QuantiseResult rounded =
          kernels.gradient_quantise(row, grad, values, coefficients, real_gain / scale_y, random,
                                    static_cast<uint32_t>(channel), static_cast<uint32_t>(spec.out_channels));
      result.max_abs = std::max(result.max_abs, rounded.max_abs * scale_y);
      result.saturated += rounded.saturated;
    }
    grad_beta[r] = scale_in * static_cast<float>(sums.q);
  }
  if (measure) return result;
  update_beta(block, first, grad_beta, rows, step_scale);
  if (trace != nullptr) trace_gradient(block, first, rows, trace->blocks[block].grad_in, /*whole_map=*/false);
  store_gradient(block, first, rows, grad_t, choice);
  if (trace != nullptr) {
    trace_gradient(block, first, rows, trace->blocks[block].grad_y, /*whole_map=*/true);
    trace->blocks[block].grad_in_scale = scale_in;
    trace->blocks[block].grad_y_scale = scale_y;
  }
  return result;
}

// The gradient that entered the block, or the one of its products, out of the slot.
void Engine::trace_gradient(size_t block, int first, int rows, std::vector<int8_t>& values, bool whole_map) const {
  const BlockSpec& spec = blocks_[block];
  const int positions = whole_map ? spec.conv_positions() : spec.out_positions();
  for (int b = 0; b < batch_size_; ++b) {
    const int8_t* map = at<int8_t>(layout_.gradient) + b * layout_.gradient_stride;
    for (int p = 0; p < positions; ++p) {
      const size_t source = static_cast<size_t>(whole_map ? p : gradient_position(spec, p));
      std::copy_n(map + source * spec.out_channels + first, rows,
                  values.begin() + (size_t(b) * positions + p) * spec.out_channels + first);
    }
  }
}

// Some channels of the gradient from above, channel by channel: grad_t [rows][y_stride]. Where the pool follows the
// sign this is left to route_to_first_positive.
void Engine::load_gradient(size_t block, int first, int rows, int8_t* grad_t) const {
  const BlockSpec& spec = blocks_[block];
  const size_t y_stride = static_cast<size_t>(geometry(block).y_stride);
  const size_t channels = static_cast<size_t>(spec.out_channels);
  const int8_t* slot = at<int8_t>(layout_.gradient) + first;
  if (spec.pool == Pool::kAfterSign) return;
  if (spec.conv_positions() == 1) {
    kernels_.transpose_bytes(slot, layout_.gradient_stride, batch_size_, rows, grad_t, y_stride);
    return;
  }
  const bool pools = spec.pool == Pool::kBeforeNorm;
  const int lines = pools ? spec.pooled_height() : 1;
  const int length = pools ? spec.pooled_width() : spec.conv_positions();
  const size_t step = (pools ? static_cast<size_t>(spec.pool_width) : 1) * channels;
  for (int b = 0; b < batch_size_; ++b) {
    const int8_t* map = slot + b * layout_.gradient_stride;
    for (int line = 0; line < lines; ++line) {
      kernels_.transpose_bytes(map + size_t(line) * spec.pool_height * spec.conv_width * channels, step, length, rows,
                               grad_t + (size_t(b) * lines + line) * length, y_stride);
    }
  }
}

// The gradient of a pooled sign belongs to the first +1 of its window, or to the window's first element if there is
// none: grad [batch][conv positions] of one channel.
template <typename Y>
void Engine::route_to_first_positive(size_t block, int channel, const Y* y, int32_t sign_from, int8_t* grad) const {
  const BlockSpec& spec = blocks_[block];
  const int conv = spec.conv_positions();
  std::memset(grad, 0, static_cast<size_t>(batch_size_) * conv);
  for (int b = 0; b < batch_size_; ++b, y += conv, grad += conv) {
    const int8_t* slot = at<int8_t>(layout_.gradient) + b * layout_.gradient_stride + channel;
    for (int line = 0; line < spec.pooled_height(); ++line) {
      int corner = line * spec.pool_height * spec.conv_width;
      for (int q = 0; q < spec.pooled_width(); ++q, corner += spec.pool_width) {
        int winner = corner;
        for (int i = spec.pool_height; i-- > 0;) {
          for (int j = spec.pool_width; j-- > 0;) {
            const int position = corner + i * spec.conv_width + j;
            winner = y[position] >= sign_from ? position : winner;
          }
        }
        grad[winner] = slot[size_t(corner) * spec.out_channels];
      }
    }
  }
}

// The gradient of the products of some channels into the slot.
void Engine::store_gradient(size_t block, int first, int rows, const int8_t* grad_t, const uint8_t* choice) {
  const BlockSpec& spec = blocks_[block];
  const size_t y_stride = static_cast<size_t>(geometry(block).y_stride);
  const size_t channels = static_cast<size_t>(spec.out_channels);
  int8_t* slot = at<int8_t>(layout_.gradient) + first;
  if (spec.conv_positions() == 1) {
    kernels_.transpose_bytes(grad_t, y_stride, rows, batch_size_, slot, layout_.gradient_stride);
    return;
  }
  const int conv = spec.conv_positions(), pooled = spec.pooled_positions();
  constexpr int kOffsets = 16;  // of the first elements of a window: a division for each gradient would take long
  int offsets[kOffsets];
  for (int i = 0; i < kOffsets; ++i) offsets[i] = window_offset(spec, i);
  for (int b = 0; b < batch_size_; ++b) {
    int8_t* map = slot + b * layout_.gradient_stride;
    if (spec.pool != Pool::kBeforeNorm) {
      kernels_.transpose_bytes(grad_t + size_t(b) * conv, y_stride, rows, conv, map, channels);
      continue;
    }
    clear_columns(map, channels, conv, rows);
    for (int r = 0; r < rows; ++r) {
      size_t j = r * y_stride + size_t(b) * pooled;
      for (int line = 0; line < spec.pooled_height(); ++line) {
        int corner = line * spec.pool_height * spec.conv_width;
        for (int q = 0; q < spec.pooled_width(); ++q, ++j, corner += spec.pool_width) {
          const int element = get_choice(spec, choice, j);
          const int position = corner + (element < kOffsets ? offsets[element] : window_offset(spec, element));
          map[size_t(position) * channels + r] = grad_t[j];
        }
      }
    }
  }
}

}  // namespace bitfleet
