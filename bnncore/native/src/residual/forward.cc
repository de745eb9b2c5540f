// Forward: the stem makes the stream, every unit adds to it, channel by channel.
#include <algorithm>
#include <cmath>

#include "bnncore/residual_engine.h"
#include "planes.h"

namespace bitfleet {

void ResidualEngine::forward_residual(int count, float kept) {
  const auto run = [&](int groups, auto&& work) {
    pool_.run([&](int member) {
      TileResult total{};
      const Range range = partition(groups, num_threads(), member);
      for (int group = range.begin; group < range.end; ++group) total.saturated += work(group, member);
      results_[static_cast<size_t>(member)] = total;
    });
    if (kept >= 0.0f) saturated_ += sum_of_members().saturated;
  };
  const auto groups_of = [](int channels) { return (channels + kTileRows - 1) / kTileRows; };
  const StemSpec& stem = network_.stem;
  prepare_real(stem.conv, more_.stem, 255, int64_t{255} * stem.conv.fan_in(), kStemBits);
  run(groups_of(stem.conv.out_channels), [&](int group, int member) {
    const int end = std::min(stem.conv.out_channels, (group + 1) * kTileRows);
    const int rows = stem_rows(stem.conv, batch_size_);
    int64_t saturated = 0;
    for (int first = group * kTileRows; first < end; first += rows) {
      saturated += forward_stem({first, std::min(first + rows, end)}, count, kept, member);
    }
    const int32_t sign_from[kTileRows] = {};
    const int first = group * kTileRows;
    emit_signs(0, first, end - first, stream_row(0, first), sign_from, count, member);
    if (end == stem.conv.out_channels) clear_unused_lanes(0, group, count);
    return saturated;
  });
  for (size_t block = 1; block < block_count(); ++block) {
    if (unit(block).has_shortcut) prepare_shortcut(block);
    run(groups_of(blocks_[block].out_channels),
        [&](int group, int member) { return forward_unit(block, group, count, kept, member); });
  }
}

// Mean and deviation of a channel, 2^exponent units of which are 1: its own, which the running ones follow, or those.
ChannelMoments ResidualEngine::moments_of(const NormLayout& norm, int channel, const ChannelStatistics& statistics,
                                          int values, int exponent, float kept) {
  float& mean = at<float>(norm.running_mean)[channel];
  float& deviation = at<float>(norm.running_mean_abs_dev)[channel];
  if (kept < 0.0f) return {std::ldexp(double{mean}, exponent), std::ldexp(double{deviation}, exponent)};
  const ChannelMoments moments = channel_moments(statistics, values);
  mean = kept * mean + (1.0f - kept) * static_cast<float>(std::ldexp(moments.mean, -exponent));
  deviation = kept * deviation + (1.0f - kept) * static_cast<float>(std::ldexp(moments.mean_abs_dev, -exponent));
  return moments;
}

int64_t ResidualEngine::forward_unit(size_t block, int group, int count, float kept, int member) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const UnitSpec& u = unit(block);
  const NormLayout norm = norm_of(layout_.blocks[block]);
  const int values = norm_count(block, count);
  const size_t stride = static_cast<size_t>(g.y_stride);
  int64_t saturated = 0;
  const int end = std::min(spec.out_channels, (group + 1) * kTileRows);
  if (u.has_shortcut) {
    const NormLayout& way = more_.shortcut_norms[block];
    const int exponent = fixed_.exponent + kStreamBits - fixed_.shift;
    const Range channels{group * kTileRows, end};
    int32_t* y = at<int32_t>(layout_.scratch[static_cast<size_t>(member)].y);
    multiply_shortcut(block, channels, count, member, y);
    for (int c = channels.begin; c < channels.end; ++c) {
      const int32_t* row = y + static_cast<size_t>(c - channels.begin) * stride;
      const ChannelStatistics statistics =
          kept >= 0.0f ? kernels_.channel->wide.statistics(row, values) : ChannelStatistics{};
      const ChannelMoments moments = moments_of(way, c, statistics, values, exponent, kept);
      saturated += kernels_.fixed_point->normalise_wide(
          row, values, stream_scaling(moments, at<float>(way.beta.value)[c], u.limit), stream_row(u.stage, c));
    }
  }
  int16_t* y = at<int16_t>(layout_.scratch[static_cast<size_t>(member)].y);
  for (int first = group * kTileRows; first < end; first += g.tile_rows) {
    const int rows = std::min(g.tile_rows, end - first);
    const uint64_t* weights =
        pack_rows(block, first, rows, at<uint64_t>(layout_.scratch[static_cast<size_t>(member)].weights));
    timed(phase_seconds_[block].forward, member, [&] { multiply(block, weights, rows, count, member, y, nullptr); });
    for (int c = first; c < first + rows; ++c) {
      const int16_t* row = y + static_cast<size_t>(c - first) * stride;
      const ChannelStatistics statistics =
          kept >= 0.0f ? kernels_.channel->narrow.statistics(row, values) : ChannelStatistics{};
      const ChannelMoments moments = moments_of(norm, c, statistics, values, 0, kept);
      saturated += kernels_.fixed_point->add(
          row, values, stream_scaling(moments, at<float>(norm.beta.value)[c], u.limit), stream_row(u.stage, c));
    }
  }
  if (block + 1 < block_count()) {
    const int32_t sign_from[kTileRows] = {};
    const int first = group * kTileRows;
    emit_signs(block, first, end - first, stream_row(u.stage, first), sign_from, count, member);
    if (end == spec.out_channels) clear_unused_lanes(block, group, count);
  }
  return saturated;
}

// Integers for the weights of a real-valued convolution, which stay until the next call.
void ResidualEngine::prepare_real(const BlockSpec& conv, const RealLayout& weights, int64_t largest_input, int64_t most,
                                  int bits) {
  fixed_ = to_fixed_point(at<float>(weights.value), conv.out_channels, conv.fan_in(), largest_input, most, bits,
                          at<int16_t>(more_.integers));
}

}  // namespace bitfleet
