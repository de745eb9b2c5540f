// Backward through the units: products again, the stream as it was, and the gradient of the stream below.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "bnncore/residual_engine.h"
#include "planes.h"

namespace bitfleet {

void ResidualEngine::backward_unit(size_t block, float step_scale) {
  BlockScales& scales = at<BlockScales>(layout_.scales)[block];
  const bool normalises = !is_float(optimizer_.kind);
  const double num_weights = static_cast<double>(blocks_[block].num_weights());
  if (unit(block).has_shortcut) {
    prepare_shortcut(block);
    if (!(side_scales(block).max_grad_y > 0.0f)) run_shortcut(block, /*measure=*/true, step_scale);
    run_shortcut(block, /*measure=*/false, step_scale);
  }
  if (!(scales.max_grad_y > 0.0f)) {
    scales.max_grad_y = run_unit_tiles(block, /*measure=*/true, step_scale).max_abs / optimizer_.headroom;
  }
  const double unit_worth = double{grad_y_scale(block)};
  const TileResult tiles = run_unit_tiles(block, /*measure=*/false, step_scale);
  saturated_ += tiles.saturated;

  // From here on the products of gradients read those of this unit's products.
  std::swap(layout_.gradient, more_.grad_y);
  const auto add_to_normaliser = [&](int64_t abs_sum) {
    scales.normaliser_sum += unit_worth * static_cast<double>(abs_sum) / num_weights;
    ++scales.normaliser_count;
  };
  const bool measure_weights = normalises && scales.normaliser_count == 0;
  if (measure_weights) add_to_normaliser(run_weights(block, /*measure=*/true, step_scale, nullptr));
  int64_t abs_sum = 0;
  timed(phase_seconds_[block].grad_weights, 0,
        [&] { abs_sum = run_weights(block, /*measure=*/false, step_scale, nullptr); });
  if (normalises && !measure_weights && scales.normaliser_count < optimizer_.normaliser_steps) {
    add_to_normaliser(abs_sum);
  }
  if (!(scales.max_grad_x > 0.0f)) {
    scales.max_grad_x = run_stream_gradient(block, /*measure=*/true).max_abs / optimizer_.headroom;
  }
  scales.scale_x = scale_of(scales.max_grad_x);
  TileResult inputs{};
  timed(phase_seconds_[block].grad_inputs, 0, [&] { inputs = run_stream_gradient(block, /*measure=*/false); });
  std::swap(layout_.gradient, more_.grad_y);
  saturated_ += inputs.saturated;
  gradient_scale_ = scales.scale_x;
  scales.max_grad_x = std::max(inputs.max_abs, scales.max_grad_x * optimizer_.scale_decay);
  scales.max_grad_y = std::max(tiles.max_abs, scales.max_grad_y * optimizer_.scale_decay);
}

Engine::TileResult ResidualEngine::run_unit_tiles(size_t block, bool measure, float step_scale) {
  const int rows = geometry(block).tile_rows, tiles = (blocks_[block].out_channels + rows - 1) / rows;
  pool_.run([&](int member) {
    TileResult total{};
    const Range range = partition(tiles, num_threads(), member);
    for (int tile = range.begin; tile < range.end; ++tile) {
      total.add(unit_tile(block, tile, measure, step_scale, member));
    }
    results_[static_cast<size_t>(member)] = total;
  });
  return sum_of_members();
}

// The gradient of a tile's products into its slot, and the stream back to what it was before the unit.
Engine::TileResult ResidualEngine::unit_tile(size_t block, int tile, bool measure, float step_scale, int member) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const UnitSpec& u = unit(block);
  const NormLayout norm = norm_of(layout_.blocks[block]);
  const ScratchLayout& scratch = layout_.scratch[static_cast<size_t>(member)];
  const int first = tile * g.tile_rows, rows = std::min(g.tile_rows, spec.out_channels - first);
  const int values = norm_count(block, batch_size_), positions = spec.conv_positions();
  const size_t stride = static_cast<size_t>(g.y_stride);
  const uint64_t* weights =
      pack_rows(block, first, rows, at<uint64_t>(layout_.packed_weights) + static_cast<size_t>(first) * g.row_words());
  int16_t* y = at<int16_t>(scratch.y);
  timed(phase_seconds_[block].recompute, member,
        [&] { multiply(block, weights, rows, batch_size_, member, y, nullptr); });
  int8_t* grads = at<int8_t>(scratch.grad_t);
  load_stream_gradient(spec.out_channels, positions, {first, first + rows}, grads, stride);
  TileResult result{};
  for (int r = 0; r < rows; ++r) {
    const int channel = first + r;
    const int16_t* row = y + static_cast<size_t>(r) * stride;
    const ChannelStatistics statistics = kernels_.channel->narrow.statistics(row, values);
    if (!measure && !u.has_shortcut) {
      const ChannelMoments moments = channel_moments(statistics, values);
      kernels_.fixed_point->subtract(row, values, stream_scaling(moments, at<float>(norm.beta.value)[channel], u.limit),
                                     stream_row(u.stage, channel));
    }
    result.add(norm_gradient(norm, channel, row, statistics, grads + static_cast<size_t>(r) * stride, values,
                             spec.fan_in(), gradient_scale_, grad_y_scale(block), stream(block, Purpose::kGradY),
                             measure, step_scale, !measure));
  }
  if (measure) return result;
  for (int b = 0; b < batch_size_; ++b) {
    kernels_.transpose_bytes(grads + static_cast<size_t>(b) * positions, stride, rows, positions,
                             at<int8_t>(more_.grad_y) + static_cast<size_t>(b) * layout_.gradient_stride + first,
                             static_cast<size_t>(spec.out_channels));
  }
  return result;
}

template <typename Y>
Engine::TileResult ResidualEngine::norm_gradient(const NormLayout& norm, int channel, const Y* y,
                                                 const ChannelStatistics& statistics, int8_t* grad, int values,
                                                 int64_t y_bound, float scale_in, float scale_y, RandomStream random,
                                                 bool measure, float step_scale, bool trains) {
  // A sum follows, not a sign: every gradient passes.
  const ChannelThresholds thresholds{0, std::numeric_limits<int32_t>::min(), std::numeric_limits<int32_t>::max()};
  float grad_beta;
  const TileResult result = round_gradient(y, grad, values,
                                           {statistics, channel_moments(statistics, values).mean_abs_dev, thresholds,
                                            y_bound, scale_in, scale_y, random, channel, measure},
                                           grad_beta);
  if (trains) {
    train_real(norm.beta, static_cast<size_t>(channel), &grad_beta, 1,
               adam_step(optimizer_.beta_step_size * step_scale));
  }
  return result;
}

template Engine::TileResult ResidualEngine::norm_gradient(const NormLayout&, int, const int16_t*,
                                                          const ChannelStatistics&, int8_t*, int, int64_t, float, float,
                                                          RandomStream, bool, float, bool);
template Engine::TileResult ResidualEngine::norm_gradient(const NormLayout&, int, const int32_t*,
                                                          const ChannelStatistics&, int8_t*, int, int64_t, float, float,
                                                          RandomStream, bool, float, bool);

// Some channels of the stream's gradient, channel by channel: rows [channels][stride].
void ResidualEngine::load_stream_gradient(int channels, int positions, Range some, int8_t* rows, size_t stride) const {
  for (int b = 0; b < batch_size_; ++b) {
    kernels_.transpose_bytes(
        at<int8_t>(layout_.gradient) + static_cast<size_t>(b) * layout_.gradient_stride + some.begin,
        static_cast<size_t>(channels), positions, some.end - some.begin, rows + static_cast<size_t>(b) * positions,
        stride);
  }
}

// The gradient of the stream below the unit takes the place of that above.
Engine::TileResult ResidualEngine::run_stream_gradient(size_t block, bool measure) {
  const BlockScales& scales = at<BlockScales>(layout_.scales)[block];
  const float unit_worth = measure ? 1.0f : scales.scale_x;
  float way = gradient_scale_;
  if (unit(block).has_shortcut) {
    const ShortcutSpec& s = unit(block).shortcut;
    // A unit of what the pool gives is 1/512 of the stream's 1, and the mean of a window's elements.
    way = static_cast<float>(std::ldexp(double{side_scales(block).scale_x}, kStreamBits - fixed_.shift) /
                             (s.pool_height * s.pool_width));
  }
  stream_gains_ = {way / unit_worth, grad_y_scale(block) / unit_worth, unit(block).approx};
  measures_ = measure;
  run_inputs(block, /*measure=*/false, nullptr);
  TileResult total{};
  for (const TileResult& part : samples_) total.add(part);
  total.max_abs *= unit_worth;
  return total;
}

// Keeps a run as it is until its sample is complete. `target` lies as far behind the sample's first as `first` says.
Engine::TileResult ResidualEngine::round_inputs(size_t block, const int32_t* sums, int32_t whole, int columns,
                                                uint32_t first, bool, int8_t* target, Trace*) const {
  const size_t offset = first % static_cast<uint32_t>(blocks_[block].in_features());
  int32_t* sample = reinterpret_cast<int32_t*>(target - offset);
  for (int k = 0; k < columns; ++k) sample[offset + static_cast<size_t>(k)] = whole - 2 * sums[k];
  return {};
}

void ResidualEngine::store_inputs(size_t block, int sample, const int8_t* staged) {
  constexpr int kRun = 64;
  const BlockSpec& spec = blocks_[block];
  const UnitSpec& u = unit(block);
  const int channels = spec.in_channels, features = spec.in_features();
  const int32_t* branch = reinterpret_cast<const int32_t*>(staged);
  const int stage = u.has_shortcut ? u.stage - 1 : u.stage;
  int8_t* grad = at<int8_t>(more_.grad_y) + static_cast<size_t>(sample) * layout_.gradient_stride;  // swapped
  const int32_t* pooled = nullptr;
  if (u.has_shortcut) {
    // Behind the branch's sums in the thread's scratch.
    pooled = shortcut_inputs(block, sample, const_cast<int32_t*>(branch) + features);
  }
  const RandomStream random = stream(block, Purpose::kGradX);
  const size_t stride = more_.streams[static_cast<size_t>(stage)].stride;
  const int16_t* values = stream_row(stage, 0) + static_cast<size_t>(sample) * spec.in_positions();
  TileResult result{};
  int8_t dropped[kRun];
  for (int p = 0; p < spec.in_positions(); ++p) {
    int window = -1;  // of the shortcut's pool; none at what it leaves over
    if (u.has_shortcut) {
      const BlockSpec& conv = u.shortcut.conv;
      const int row = p / spec.in_width / u.shortcut.pool_height, column = p % spec.in_width / u.shortcut.pool_width;
      if (row < conv.in_height && column < conv.in_width) window = row * conv.in_width + column;
    }
    for (int c = 0; c < channels; c += kRun) {
      const int some = std::min(kRun, channels - c);
      int32_t way[kRun];
      int16_t s[kRun];
      const int at_p = p * channels + c;
      for (int k = 0; k < some; ++k) s[k] = values[static_cast<size_t>(c + k) * stride + static_cast<size_t>(p)];
      if (!u.has_shortcut) {
        std::copy_n(grad + at_p, some, way);
      } else {
        const int positions = u.shortcut.conv.conv_positions();
        for (int k = 0; k < some; ++k) {
          way[k] = window < 0 ? 0 : pooled[static_cast<size_t>(c + k) * positions + static_cast<size_t>(window)];
        }
      }
      const QuantiseResult part = kernels_.fixed_point->stream_gradient(
          way, branch + at_p, s, some, stream_gains_, random,
          static_cast<uint32_t>(sample) * static_cast<uint32_t>(features) + static_cast<uint32_t>(at_p),
          measures_ ? dropped : grad + at_p);
      result.max_abs = std::max(result.max_abs, part.max_abs);
      result.saturated += part.saturated;
    }
  }
  samples_[static_cast<size_t>(sample)] = result;
}

}  // namespace bitfleet
