// Backward: scales, the exact l1 batch-norm gradient in 8 bits, and where a gradient lies in its map.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bnncore/engine.h"
#include "maps.h"

namespace bitfleet {

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
  timed(phase_seconds_[block].grad_weights, 0,
        [&] { abs_sum = run_weights(block, /*measure=*/false, step_scale, trace); });
  if (normalises && !measure_weights && scales.normaliser_count < optimizer_.normaliser_steps) {
    add_to_normaliser(abs_sum);
  }

  if (block > 0) {
    if (!(scales.max_grad_x > 0.0f)) {
      scales.max_grad_x = run_inputs(block, /*measure=*/true, nullptr).max_abs / optimizer_.headroom;
    }
    scales.scale_x = scale_of(scales.max_grad_x);
    TileResult inputs{};
    timed(phase_seconds_[block].grad_inputs, 0, [&] { inputs = run_inputs(block, /*measure=*/false, trace); });
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
  Y* y = tile_products<Y>(block, first, member);
  uint8_t* choice = spec.pool == Pool::kBeforeNorm ? at<uint8_t>(scratch.choice) : nullptr;
  ChannelStatistics own[kTileRows];
  const ChannelStatistics* statistics_of = own;
  if (g.kept) {
    statistics_of = at<ChannelStatistics>(layout_.blocks[block].statistics) + first;
  } else {
    timed(phase_seconds_[block].recompute, member,
          [&] { multiply(block, weights, rows, batch_size_, member, y, choice); });
    for (int r = 0; r < rows; ++r) own[r] = kernels.statistics(y + size_t(r) * g.y_stride, values);
  }
  int8_t* grad_t = at<int8_t>(scratch.grad_t);

  const float scale_in = grad_x_scale(block);
  const float scale_y = grad_y_scale(block);
  const RandomStream random = stream(block, Purpose::kGradY);
  const float* beta = at<float>(layout_.blocks[block].beta) + first;
  ChannelNorms norms;
  kernels_.channel->moments(statistics_of, values, rows, norms);
  kernels_.channel->thresholds(beta, rows, norms);
  load_gradient(block, first, rows, y, norms.sign_from, member, grad_t);
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
    if (trace != nullptr) {
      BlockTrace& t = trace->blocks[block];
      std::copy_n(row, values, t.y_again.begin() + size_t(channel) * values);
      t.sums[2 * channel] = statistics.sum;
      t.sums[2 * channel + 1] = statistics.abs_deviation;
      t.thresholds[3 * channel] = thresholds.sign_from;
      t.thresholds[3 * channel + 1] = thresholds.mask_from;
      t.thresholds[3 * channel + 2] = thresholds.mask_to;
    }
    const NormGradient norm{statistics, norms.mean_abs_dev[r], thresholds, y_bound, scale_in, scale_y, random, channel,
                            measure};
    result.add(round_gradient(row, grad, values, norm, grad_beta[r]));
  }
  if (measure) return result;
  update_beta(block, first, grad_beta, rows, step_scale);
  if (trace != nullptr) trace_gradient(block, first, rows, trace->blocks[block].grad_in, /*whole_map=*/false);
  store_gradient(block, first, rows, grad_t, choice, member);
  if (trace != nullptr) {
    trace_gradient(block, first, rows, trace->blocks[block].grad_y, /*whole_map=*/true);
    trace->blocks[block].grad_in_scale = scale_in;
    trace->blocks[block].grad_y_scale = scale_y;
  }
  return result;
}

template <typename Y>
Engine::TileResult Engine::round_gradient(const Y* y, int8_t* grad, int values, const NormGradient& norm,
                                          float& grad_beta) const {
  const ProductKernels<Y>& kernels = kernels_.channel->of<Y>();
  const int64_t floor_mean = floor_divide(norm.statistics.sum, values);
  const GradientSums sums =
      kernels.gradient_sums(y, grad, values, norm.y_bound, norm.thresholds, static_cast<int32_t>(floor_mean),
                            floor_mean * values == norm.statistics.sum);
  grad_beta = norm.scale_in * static_cast<float>(sums.q);
  if (norm.statistics.abs_deviation == 0) {
    if (!norm.measure) std::memset(grad, 0, static_cast<size_t>(values));
    return {};
  }
  const GradientCoefficients coefficients =
      gradient_coefficients(norm.statistics, floor_mean, norm.mean_abs_dev, norm.thresholds, sums, values);
  const float real_gain = static_cast<float>(double{norm.scale_in} / norm.mean_abs_dev);
  if (norm.measure) return {kernels.gradient_max(y, grad, values, coefficients) * real_gain, 0, 0};
  const QuantiseResult rounded = kernels.gradient_quantise(y, grad, values, coefficients, real_gain / norm.scale_y,
                                                           norm.random, padded_index(norm.channel, values, 0));
  return {rounded.max_abs * norm.scale_y, rounded.saturated, 0};
}

template Engine::TileResult Engine::round_gradient(const int16_t*, int8_t*, int, const NormGradient&, float&) const;
template Engine::TileResult Engine::round_gradient(const int32_t*, int8_t*, int, const NormGradient&, float&) const;

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

// Some channels of the gradient from above, channel by channel: grad_t [rows][y_stride]. That of a pooled sign belongs
// to the first +1 of its window, or to the window's first element if there is none.
template <typename Y>
void Engine::load_gradient(size_t block, int first, int rows, const Y* y, const int32_t* sign_from, int member,
                           int8_t* grad_t) const {
  const BlockSpec& spec = blocks_[block];
  const size_t y_stride = static_cast<size_t>(geometry(block).y_stride);
  const size_t channels = static_cast<size_t>(spec.out_channels);
  const int8_t* slot = at<int8_t>(layout_.gradient) + first;
  const bool signs = spec.pool == Pool::kAfterSign;
  if (spec.conv_positions() == 1 && !signs) {
    kernels_.transpose_bytes(slot, layout_.gradient_stride, batch_size_, rows, grad_t, y_stride);
    return;
  }
  const bool pools = spec.pool != Pool::kNone;
  const int lines = pools ? spec.pooled_height() : 1;
  const int length = pools ? spec.pooled_width() : spec.conv_positions();
  const size_t step = (pools ? static_cast<size_t>(spec.pool_width) : 1) * channels;
  const size_t size = static_cast<size_t>(lines) * length, conv = static_cast<size_t>(spec.conv_positions());
  int8_t* pooled = at<int8_t>(layout_.scratch[member].patches);
  for (int b = 0; b < batch_size_; ++b) {
    const int8_t* map = slot + b * layout_.gradient_stride;
    int8_t* target = signs ? pooled : grad_t + b * size;
    const size_t stride = signs ? size : y_stride;
    for (int line = 0; line < lines; ++line) {
      kernels_.transpose_bytes(map + size_t(line) * spec.pool_height * spec.conv_width * channels, step, length, rows,
                               target + size_t(line) * length, stride);
    }
    if (!signs) continue;
    for (int r = 0; r < rows; ++r) {
      const size_t place = r * y_stride + b * conv;
      kernels_.pool->spread_signs_of<Y>()(y + place, sign_from[r], pooled + r * size, pool_shape(spec), grad_t + place);
    }
  }
}

// The gradient of the products of some channels into the slot.
void Engine::store_gradient(size_t block, int first, int rows, const int8_t* grad_t, const uint8_t* choice,
                            int member) {
  const BlockSpec& spec = blocks_[block];
  const size_t y_stride = static_cast<size_t>(geometry(block).y_stride);
  int8_t* slot = at<int8_t>(layout_.gradient) + first;
  if (spec.conv_positions() == 1) {
    kernels_.transpose_bytes(grad_t, y_stride, rows, batch_size_, slot, layout_.gradient_stride);
    return;
  }
  const size_t conv = static_cast<size_t>(spec.conv_positions()), norm = static_cast<size_t>(spec.norm_positions());
  const bool pools = spec.pool == Pool::kBeforeNorm;
  int8_t* map = at<int8_t>(layout_.scratch[member].conv_y);
  for (int b = 0; b < batch_size_; ++b) {
    for (int r = 0; pools && r < rows; ++r) {
      const size_t place = r * y_stride + b * norm;
      const uint8_t* choices = choice + place * choice_bytes(spec);
      if (spec.window() <= 256) {
        kernels_.pool->spread(grad_t + place, choices, pool_shape(spec), map + r * conv);
      } else {
        spread(spec, grad_t + place, choices, map + r * conv);
      }
    }
    kernels_.transpose_bytes(pools ? map : grad_t + b * conv, pools ? conv : y_stride, rows, spec.conv_positions(),
                             slot + b * layout_.gradient_stride, static_cast<size_t>(spec.out_channels));
  }
}

}  // namespace bitfleet
