// Forward: products, statistics and signs, tile by tile; then softmax cross-entropy.
#include <algorithm>

#include "bnncore/engine.h"
#include "bnncore/packing.h"
#include "bnncore/rounding.h"
#include "maps.h"

namespace bitfleet {

void Engine::forward(int count, float kept, Trace* trace) {
  for (size_t block = 0; block < block_count(); ++block) {
    const int groups = (blocks_[block].out_channels + kTileRows - 1) / kTileRows;
    pool_.run([&](int member) {
      const Range range = partition(groups, num_threads(), member);
      for (int group = range.begin; group < range.end; ++group) {
        if (geometry(block).wide) {
          forward_group<int32_t>(block, group, count, kept, member, trace);
        } else {
          forward_group<int16_t>(block, group, count, kept, member, trace);
        }
      }
    });
  }
  if (trace != nullptr) {
    const float* logits = at<float>(layout_.logits);
    trace->logits.assign(logits, logits + size_t(count) * classes());
  }
}

// The 16 channels of one 16-bit lane of the next layer's input: no two threads write to the same lane.
template <typename Y>
void Engine::forward_group(size_t block, int group, int count, float kept, int member, Trace* trace) {
  const BlockSpec& spec = blocks_[block];
  const BlockGeometry& g = geometry(block);
  const BlockLayout& layout = layout_.blocks[block];
  const ScratchLayout& scratch = layout_.scratch[member];
  const bool last = block + 1 == block_count();
  const int values = norm_count(block, count);
  const ProductKernels<Y>& kernels = kernels_.channel->of<Y>();
  float* mean = at<float>(layout.running_mean);
  float* deviation = at<float>(layout.running_mean_abs_dev);
  const float* beta = at<float>(layout.beta);

  const int end = std::min(spec.out_channels, (group + 1) * kTileRows);
  for (int first = group * kTileRows; first < end; first += g.tile_rows) {
    const int rows = std::min(g.tile_rows, end - first);
    const uint64_t* weights = pack_rows(block, first, rows, at<uint64_t>(scratch.weights));
    Y* y = tile_products<Y>(block, first, member);
    timed(phase_seconds_[block].forward, member, [&] { multiply(block, weights, rows, count, member, y, nullptr); });
    ChannelNorms norms;
    if (kept >= 0.0f) {
      ChannelStatistics own[kTileRows];
      ChannelStatistics* statistics = g.kept ? at<ChannelStatistics>(layout.statistics) + first : own;
      for (int r = 0; r < rows; ++r) statistics[r] = kernels.statistics(y + size_t(r) * g.y_stride, values);
      kernels_.channel->moments(statistics, values, rows, norms);
      for (int r = 0; r < rows; ++r) {
        mean[first + r] = kept * mean[first + r] + (1.0f - kept) * static_cast<float>(norms.mean[r]);
        deviation[first + r] = kept * deviation[first + r] + (1.0f - kept) * static_cast<float>(norms.mean_abs_dev[r]);
      }
    } else {
      std::copy_n(mean + first, rows, norms.mean);
      std::copy_n(deviation + first, rows, norms.mean_abs_dev);
    }
    kernels_.channel->thresholds(beta + first, rows, norms);
    for (int r = 0; r < rows && (last || trace != nullptr); ++r) {
      const int channel = first + r;
      const Y* row = y + size_t(r) * g.y_stride;
      if (last) {
        const double inverse = norms.mean_abs_dev[r] > 0.0 ? 1.0 / norms.mean_abs_dev[r] : 0.0;
        float* logits = at<float>(layout_.logits) + channel;
        for (int b = 0; b < count; ++b) {
          logits[size_t(b) * classes()] =
              static_cast<float>((row[b] - norms.mean[r]) * inverse + double{beta[channel]});
        }
      }
      if (trace != nullptr) {
        std::copy_n(row, values, trace->blocks[block].y.begin() + size_t(channel) * values);
      }
    }
    if (!last) emit_signs(block, first, rows, y, norms.sign_from, count, member);
  }
  if (!last && end == spec.out_channels) clear_unused_lanes(block, group, count);
}

// Writes the sign bits of some channels, those of the largest sign in each window where the pool follows the sign.
template <typename Y>
void Engine::emit_signs(size_t block, int first, int rows, const Y* y, const int32_t* sign_from, int count,
                        int member) {
  const BlockSpec& spec = blocks_[block];
  const size_t y_stride = static_cast<size_t>(geometry(block).y_stride);
  const size_t lanes = static_cast<size_t>(words_for(spec.out_channels)) * kLanes;
  const int shift = first % kTileRows;
  uint16_t* bits = at<uint16_t>(layout_.scratch[member].bits);
  uint16_t* target = at<uint16_t>(layout_.blocks[block].signs) + first / kTileRows;
  const auto store = [&](size_t position, uint16_t value) {
    uint16_t& lane = target[position * lanes];
    const uint16_t before = shift == 0 ? uint16_t{0} : lane;
    lane = static_cast<uint16_t>(before | value << shift);
  };
  if (spec.pool == Pool::kAfterSign) {
    const int conv = spec.conv_positions(), pooled = spec.pooled_positions();
    for (int b = 0; b < count; ++b) {
      kernels_.channel->of<Y>().emit_signs(y + size_t(b) * conv, y_stride, sign_from, rows, conv, bits);
      size_t q = size_t(b) * pooled;
      for (int line = 0; line < spec.pooled_height(); ++line) {
        const uint16_t* corner = bits + line * spec.pool_height * spec.conv_width;
        for (int column = 0; column < spec.pooled_width(); ++column, ++q, corner += spec.pool_width) {
          uint16_t all = corner[0];  // the largest sign is -1 only where all are
          for (int i = 0; i < spec.pool_height; ++i) {
            for (int j = 0; j < spec.pool_width; ++j) all &= corner[i * spec.conv_width + j];
          }
          store(q, all);
        }
      }
    }
    return;
  }
  const int values = norm_count(block, count);
  for (int start = 0; start < values; start += kEmittedAtOnce) {
    const int some = std::min(kEmittedAtOnce, values - start);
    kernels_.channel->of<Y>().emit_signs(y + start, y_stride, sign_from, rows, some, bits);
    for (int j = 0; j < some; ++j) store(size_t(start) + j, bits[j]);
  }
}

template void Engine::emit_signs(size_t, int, int, const int16_t*, const int32_t*, int, int);

// Unused bits of a word are zero: `group` is the last lane in use.
void Engine::clear_unused_lanes(size_t block, int group, int count) {
  const BlockSpec& spec = blocks_[block];
  const size_t lanes = static_cast<size_t>(words_for(spec.out_channels)) * kLanes;
  const size_t used = static_cast<size_t>(group) + 1;
  if (used == lanes) return;
  uint16_t* target = at<uint16_t>(layout_.blocks[block].signs);
  const size_t positions = static_cast<size_t>(count) * spec.out_positions();
  for (size_t p = 0; p < positions; ++p) std::fill_n(target + p * lanes + used, lanes - used, uint16_t{0});
}

StepResult Engine::softmax(int count, int32_t* predictions, bool with_gradient) {
  const float* logits = at<float>(layout_.logits);
  const int32_t* labels = at<int32_t>(layout_.labels);
  if (!with_gradient) return softmax_batch(logits, labels, count, classes(), predictions, nullptr);
  const RandomStream random = stream(block_count() - 1, Purpose::kTopGradient);
  int8_t* gradient = at<int8_t>(layout_.gradient);
  return softmax_batch(logits, labels, count, classes(), predictions, [&](int b, int c, double value) {
    const uint32_t half = random_half(random, static_cast<uint32_t>(b * classes() + c));
    gradient[b * layout_.gradient_stride + c] =
        static_cast<int8_t>(round_stochastic(static_cast<float>(value * 127.0), half));
  });
}

}  // namespace bitfleet
