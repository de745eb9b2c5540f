// Backward: the exact l1 batch-norm gradient in 8 bits, weight gradients folded into the optimizer, and the gradient
// for the layer below in place.
#include <algorithm>
#include <cstring>
#include <limits>

#include "bnncore/engine.h"
#include "bnncore/packing.h"

namespace bitfleet {

void Engine::backward_block(size_t block, float step_scale, Trace* trace) {
  BlockScales& scales = at<BlockScales>(layout_.scales)[block];
  const bool normalises = optimizer_.kind != OptimizerKind::kAdam;
  const double num_weights = double{1} * blocks_[block].fan_in() * blocks_[block].out_channels;

  // Scales come from the step before. Where there is none yet, exact passes measure first.
  if (!(scales.max_grad_y > 0.0f)) {
    scales.max_grad_y = run_tiles(block, Pass::kMeasureGradient, step_scale, nullptr).max_abs / optimizer_.headroom;
  }
  const float grad_y_scale_now = grad_y_scale(block);
  const auto add_to_normaliser = [&](int64_t abs_sum) {
    scales.normaliser_sum += double{grad_y_scale_now} * static_cast<double>(abs_sum) / num_weights;
    ++scales.normaliser_count;
  };
  const bool measure_weights = normalises && scales.normaliser_count == 0;
  if (measure_weights) add_to_normaliser(run_tiles(block, Pass::kMeasureWeights, step_scale, nullptr).abs_sum);

  const TileResult tiles = run_tiles(block, Pass::kUpdate, step_scale, trace);
  if (normalises && !measure_weights && scales.normaliser_count < optimizer_.normaliser_steps) {
    add_to_normaliser(tiles.abs_sum);
  }
  saturated_ += tiles.saturated;

  if (block > 0) {
    if (!(scales.max_grad_x > 0.0f)) {
      scales.max_grad_x = run_inputs(block, /*measure=*/true, nullptr).max_abs / optimizer_.headroom;
    }
    scales.scale_x = scale_of(scales.max_grad_x);
    const TileResult inputs = run_inputs(block, /*measure=*/false, trace);
    saturated_ += inputs.saturated;
    scales.max_grad_x = std::max(inputs.max_abs, scales.max_grad_x * optimizer_.scale_decay);
  }
  scales.max_grad_y = std::max(tiles.max_abs, scales.max_grad_y * optimizer_.scale_decay);
}

Engine::TileResult Engine::run_tiles(size_t block, Pass pass, float step_scale, Trace* trace) {
  const int tiles = (blocks_[block].out_channels + kTileRows - 1) / kTileRows;
  pool_.run([&](int member) {
    TileResult total{};
    const Range range = partition(tiles, num_threads(), member);
    for (int tile = range.begin; tile < range.end; ++tile) {
      total.add(backward_tile(block, tile, pass, step_scale, member, trace));
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

Engine::TileResult Engine::backward_tile(size_t block, int tile, Pass pass, float step_scale, int member,
                                         Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const ScratchLayout& scratch = layout_.scratch[member];
  const size_t words = static_cast<size_t>(words_for(spec.fan_in()));
  const int first = tile * kTileRows;
  const int rows = std::min(kTileRows, spec.out_channels - first);
  const int64_t y_bound = int64_t{spec.fan_in()} * (block == 0 ? 255 : 1);

  // Inner blocks keep their packed rows: the gradient for the layer below needs the weights as they were.
  uint64_t* target = block == 0 ? at<uint64_t>(scratch.weights) : at<uint64_t>(layout_.packed_weights) + first * words;
  const uint64_t* weights = pack_rows(block, first, rows, target);
  int32_t* y = at<int32_t>(scratch.y);
  multiply(block, weights, words, rows, batch_size_, member, y);

  int8_t* gradient = at<int8_t>(layout_.gradient) + first;
  int8_t* grad_t = at<int8_t>(scratch.grad_t);
  kernels_.transpose_bytes(gradient, layout_.gradient_stride, batch_size_, rows, grad_t, layout_.y_stride);

  const float scale_in = grad_x_scale(block);
  const float scale_y = grad_y_scale(block);
  const RandomStream random = stream(block, Purpose::kGradY);
  TileResult result{};
  for (int r = 0; r < rows; ++r) {
    const int channel = first + r;
    const int32_t* row = y + r * layout_.y_stride;
    int8_t* grad = grad_t + r * layout_.y_stride;
    const ChannelStatistics statistics = kernels_.channel->statistics(row, batch_size_);
    const ChannelMoments moments = channel_moments(statistics, batch_size_);
    ChannelThresholds thresholds =
        channel_thresholds(moments.mean, moments.mean_abs_dev, at<float>(layout_.blocks[block].beta)[channel]);
    if (block + 1 == block_count()) {  // softmax follows, not a sign: every sample passes
      thresholds.mask_from = std::numeric_limits<int32_t>::min();
      thresholds.mask_to = std::numeric_limits<int32_t>::max();
    }
    const int64_t floor_mean = floor_divide(statistics.sum, batch_size_);
    const GradientSums sums =
        kernels_.channel->gradient_sums(row, grad, batch_size_, y_bound, thresholds, static_cast<int32_t>(floor_mean),
                                        floor_mean * batch_size_ == statistics.sum);
    if (trace != nullptr) {
      BlockTrace& t = trace->blocks[block];
      std::copy_n(row, batch_size_, t.y_again.begin() + size_t(channel) * batch_size_);
      t.sums[2 * channel] = statistics.sum;
      t.sums[2 * channel + 1] = statistics.abs_deviation;
      t.thresholds[3 * channel] = thresholds.sign_from;
      t.thresholds[3 * channel + 1] = thresholds.mask_from;
      t.thresholds[3 * channel + 2] = thresholds.mask_to;
      for (int b = 0; b < batch_size_; ++b) t.grad_in[size_t(b) * spec.out_channels + channel] = grad[b];
    }
    if (statistics.abs_deviation == 0) {
      std::memset(grad, 0, static_cast<size_t>(batch_size_));
    } else {
      const GradientCoefficients coefficients = gradient_coefficients(statistics, thresholds, sums, batch_size_);
      const float real_gain = static_cast<float>(double{scale_in} / moments.mean_abs_dev);
      if (pass == Pass::kMeasureGradient) {
        const float largest = kernels_.channel->gradient_max(row, grad, batch_size_, coefficients);
        result.max_abs = std::max(result.max_abs, largest * real_gain);
        continue;
      }
      const QuantiseResult rounded =
          kernels_.channel->gradient_quantise(row, grad, batch_size_, coefficients, real_gain / scale_y, random,
                                              static_cast<uint32_t>(channel), static_cast<uint32_t>(spec.out_channels));
      result.max_abs = std::max(result.max_abs, rounded.max_abs * scale_y);
      result.saturated += rounded.saturated;
    }
    if (pass == Pass::kUpdate) update_beta(block, channel, scale_in * static_cast<float>(sums.q), step_scale);
  }
  if (pass == Pass::kMeasureGradient) return result;
  result.abs_sum = fold_weights(block, first, rows, pass, step_scale, member, trace);
  if (pass == Pass::kUpdate && (block > 0 || trace != nullptr)) {
    kernels_.transpose_bytes(grad_t, layout_.y_stride, rows, batch_size_, gradient, layout_.gradient_stride);
  }
  if (trace != nullptr) {
    BlockTrace& t = trace->blocks[block];
    t.grad_in_scale = scale_in;
    t.grad_y_scale = scale_y;
    for (int b = 0; b < batch_size_; ++b) {
      std::copy_n(gradient + b * layout_.gradient_stride, rows,
                  t.grad_y.begin() + size_t(b) * spec.out_channels + first);
    }
  }
  return result;
}

int64_t Engine::fold_weights(size_t block, int first_row, int rows, Pass pass, float step_scale, int member,
                             Trace* trace) {
  const int depth = blocks_[block].fan_in();
  const ScratchLayout& scratch = layout_.scratch[member];
  const int8_t* grad_t = at<int8_t>(scratch.grad_t);
  int32_t* products = at<int32_t>(scratch.products);
  const bool wants_sum = optimizer_.kind != OptimizerKind::kAdam &&
                         at<BlockScales>(layout_.scales)[block].normaliser_count < optimizer_.normaliser_steps;
  const UpdateContext context = update_context(block, step_scale);
  int32_t sums[kTileRows] = {};
  for (int r = 0; r < rows; ++r) {
    for (int b = 0; b < batch_size_; ++b) sums[r] += grad_t[r * layout_.y_stride + b];
  }
  int64_t abs_sum = 0;
  for (int k0 = 0; k0 < depth; k0 += kColumnBlock) {
    const int columns = std::min(kColumnBlock, depth - k0);
    if (block == 0) {
      kernels_.input_grad(grad_t, layout_.y_stride, sums, rows, batch_size_, at<uint8_t>(layout_.input),
                          static_cast<size_t>(depth), k0, columns, at<int16_t>(scratch.expanded), products);
    } else {
      kernels_.sign_gemm(grad_t, layout_.y_stride, sums, rows, batch_size_,
                         at<uint64_t>(layout_.blocks[block - 1].signs), static_cast<size_t>(words_for(depth)), k0,
                         columns, at<uint8_t>(scratch.expanded), products);
    }
    for (int r = 0; r < rows; ++r) {
      const int32_t* run = products + r * kColumnBlock;
      const size_t first = static_cast<size_t>(first_row + r) * static_cast<size_t>(depth) + static_cast<size_t>(k0);
      if (wants_sum) abs_sum += kernels_.channel->integer_abs_sum(run, columns);
      if (trace != nullptr) std::copy_n(run, columns, trace->blocks[block].grad_weights.begin() + first);
      if (pass == Pass::kUpdate) update_run(block, context, first, run, columns);
    }
  }
  return abs_sum;
}

Engine::TileResult Engine::run_inputs(size_t block, bool measure, Trace* trace) {
  pool_.run([&](int member) {
    const Range range = partition(batch_size_, num_threads(), member);
    TileResult total{};
    for (int first = range.begin; first < range.end; first += kTileRows) {
      total.add(inputs_of(block, {first, std::min(first + kTileRows, range.end)}, measure, member, trace));
    }
    results_[member] = total;
  });
  return sum_of_members();
}

// grad_x of up to 16 samples replaces their grad_y, which is no longer needed then.
Engine::TileResult Engine::inputs_of(size_t block, Range samples, bool measure, int member, Trace* trace) {
  const int outputs = blocks_[block].out_channels;
  const int inputs = blocks_[block].fan_in();
  const ScratchLayout& scratch = layout_.scratch[member];
  const size_t staged_stride = round_up(static_cast<size_t>(inputs), kColumnBlock);
  const size_t words = static_cast<size_t>(words_for(inputs));
  const int rows = samples.end - samples.begin;
  int8_t* grad = at<int8_t>(layout_.gradient) + samples.begin * layout_.gradient_stride;
  int8_t* staged = at<int8_t>(scratch.staged);
  int32_t* products = at<int32_t>(scratch.products);
  const float scale_y = grad_y_scale(block);
  const float gain = scale_y / at<BlockScales>(layout_.scales)[block].scale_x;  // not used while measuring
  const RandomStream random = stream(block, Purpose::kGradX);

  int32_t sums[kTileRows] = {};
  for (int r = 0; r < rows; ++r) {
    for (int c = 0; c < outputs; ++c) sums[r] += grad[r * layout_.gradient_stride + c];
  }
  TileResult result{};
  for (int k0 = 0; k0 < inputs; k0 += kColumnBlock) {
    const int columns = std::min(kColumnBlock, inputs - k0);
    kernels_.sign_gemm(grad, layout_.gradient_stride, sums, rows, outputs, at<uint64_t>(layout_.packed_weights), words,
                       k0, columns, at<uint8_t>(scratch.expanded), products);
    for (int r = 0; r < rows; ++r) {
      const int32_t* run = products + r * kColumnBlock;
      if (measure) {
        result.max_abs =
            std::max(result.max_abs, static_cast<float>(kernels_.channel->integer_max(run, columns)) * scale_y);
        continue;
      }
      const uint32_t first =
          static_cast<uint32_t>(samples.begin + r) * static_cast<uint32_t>(inputs) + static_cast<uint32_t>(k0);
      const QuantiseResult rounded =
          kernels_.channel->integer_quantise(run, staged + r * staged_stride + k0, columns, gain, random, first);
      result.max_abs = std::max(result.max_abs, rounded.max_abs / gain * scale_y);
      result.saturated += rounded.saturated;
      if (trace != nullptr) std::copy_n(run, columns, trace->blocks[block].grad_x.begin() + first);
    }
  }
  if (!measure) {
    for (int r = 0; r < rows; ++r) {
      std::memcpy(grad + r * layout_.gradient_stride, staged + r * staged_stride, static_cast<size_t>(inputs));
    }
  }
  return result;
}

}  // namespace bitfleet
