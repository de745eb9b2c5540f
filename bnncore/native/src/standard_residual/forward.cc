// Forward of the preset `standard` on a residual network: the stem, the stream that units add to, the head.
#include <algorithm>

#include "../standard/layers_inl.h"
#include "bnncore/standard_residual_engine.h"
#include "stem_pool.h"

namespace bitfleet {

void StandardResidualEngine::forward(int count, bool training) {
  forward_stem(count, training);
  float* stream = at<float>(layout_.work);
  const float* first = at<float>(layout_.stem_out);
  const size_t values = static_cast<size_t>(network_.stem.out_positions()) * network_.stem.conv.out_channels;
  over_rows(count, [&](Range samples, int) {
    std::copy(first + size_t(samples.begin) * values, first + size_t(samples.end) * values,
              stream + size_t(samples.begin) * values);
  });
  for (size_t block = 1; !is_head(block); ++block) forward_unit(block, count, training);
  forward_head(count);
}

void StandardResidualEngine::forward_stem(int count, bool training) {
  const StemSpec& stem = network_.stem;
  const BlockSpec& conv = stem.conv;
  multiply(conv, count, bytes_as_inputs(conv.in_channels), numbers_as_weights(layout_.stem, conv),
           at<float>(layout_.stem_norm.x));
  normalise(layout_.stem_norm, conv.out_channels, count * conv.conv_positions(), training);
  if (layout_.stem_out != layout_.stem_norm.x) rectify_and_pool(count, at<float>(layout_.stem_out));
  if (stem.second_norm.empty()) return;
  normalise(layout_.second_norm, conv.out_channels, count * stem.out_positions(), training);
}

void StandardResidualEngine::rectify_and_pool(int count, float* out) {
  const StemSpec& stem = network_.stem;
  const size_t channels = static_cast<size_t>(stem.conv.out_channels);
  const size_t values = static_cast<size_t>(stem.conv.conv_positions()) * channels;
  const size_t outputs = static_cast<size_t>(stem.out_positions()) * channels;
  over_rows(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      const float* x = at<float>(layout_.stem_norm.x) + size_t(b) * values;
      float* target = out + size_t(b) * outputs;
      if (stem.relu) {
        float* rectified = stem.pools ? at<float>(layout_.pool_input) + size_t(b) * values : target;
        for (size_t i = 0; i < values; ++i) rectified[i] = x[i] < 0.0f ? 0.0f : x[i];
        x = rectified;
      }
      if (stem.pools) {
        for_each_window(stem, [&](const StemWindow& w) {
          float* largest = target + static_cast<size_t>(w.number) * channels;
          std::copy_n(x + static_cast<size_t>(w.pixel(0)) * channels, channels, largest);
          for (int i = 1; i < w.size(); ++i) {
            const float* other = x + static_cast<size_t>(w.pixel(i)) * channels;
            for (size_t c = 0; c < channels; ++c) largest[c] = other[c] > largest[c] ? other[c] : largest[c];
          }
        });
      } else if (!stem.relu) {
        std::copy_n(x, values, target);
      }
    }
  });
}

void StandardResidualEngine::forward_unit(size_t block, int count, bool training) {
  const BlockSpec& spec = blocks_[block];
  const StandardUnitLayout& u = unit_layout(block);
  float* stream = at<float>(layout_.work);
  const int rows = count * spec.conv_positions();
  multiply(spec, count, signs_as_inputs(stream, spec.in_channels), signs_as_weights(u.weights, spec),
           at<float>(u.norm.x));
  normalise(u.norm, spec.out_channels, rows, training);
  const float* way = stream;
  if (unit(block).has_shortcut) {
    const BlockSpec& conv = unit(block).shortcut.conv;
    pool_stream(block, count, stream);
    multiply(conv, count, numbers_as_inputs(at<float>(u.pooled), conv.in_channels),
             numbers_as_weights(u.shortcut, conv), at<float>(u.shortcut_norm.x));
    normalise(u.shortcut_norm, conv.out_channels, rows, training);
    way = at<float>(u.shortcut_norm.x);
  }
  const float* x = at<float>(u.norm.x);
  const size_t channels = static_cast<size_t>(spec.out_channels);
  over_rows(rows, [&](Range part, int) {
    for (size_t i = size_t(part.begin) * channels; i < size_t(part.end) * channels; ++i) stream[i] = way[i] + x[i];
  });
}

// The mean of each window of the stream, added up row by row.
void StandardResidualEngine::pool_stream(size_t block, int count, const float* stream) {
  const ShortcutSpec& shortcut = unit(block).shortcut;
  const BlockSpec& spec = blocks_[block];
  const size_t channels = static_cast<size_t>(spec.in_channels);
  const float elements = static_cast<float>(shortcut.pool_height * shortcut.pool_width);
  float* pooled = at<float>(unit_layout(block).pooled);
  over_rows(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      const float* map = stream + size_t(b) * spec.in_features();
      float* mean = pooled + size_t(b) * shortcut.conv.in_features();
      for (int p = 0; p < shortcut.conv.in_positions(); ++p, mean += channels) {
        const int row = p / shortcut.conv.in_width * shortcut.pool_height;
        const int column = p % shortcut.conv.in_width * shortcut.pool_width;
        std::fill_n(mean, channels, 0.0f);
        for (int i = 0; i < shortcut.pool_height; ++i) {
          for (int j = 0; j < shortcut.pool_width; ++j) {
            const float* s = map + static_cast<size_t>((row + i) * spec.in_width + column + j) * channels;
            for (size_t c = 0; c < channels; ++c) mean[c] += s[c];
          }
        }
        for (size_t c = 0; c < channels; ++c) mean[c] /= elements;
      }
    }
  });
}

// The mean of the stream over its map, summed in double position by position; the dense layer.
void StandardResidualEngine::forward_head(int count) {
  const BlockSpec& dense = blocks_.back();
  const int positions = network_.head_positions(), channels = dense.in_channels;
  float* features = at<float>(layout_.features);
  over_rows(count, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      const float* map = at<float>(layout_.work) + size_t(b) * positions * channels;
      for (int first = 0, some; first < channels; first += some) {
        some = std::min(kChannelGroup, channels - first);
        double sums[kChannelGroup] = {};
        for (int p = 0; p < positions; ++p) {
          const float* s = map + size_t(p) * channels + first;
          for (int c = 0; c < some; ++c) sums[c] += static_cast<double>(network_.relu && s[c] < 0.0f ? 0.0f : s[c]);
        }
        for (int c = 0; c < some; ++c)
          features[size_t(b) * channels + first + c] = static_cast<float>(sums[c] / positions);
      }
    }
  });
  float* logits = at<float>(layout_.logits);
  const float* bias = at<float>(layout_.bias.values);
  multiply(dense, count, numbers_as_inputs(features, channels), numbers_as_weights(layout_.dense, dense), logits);
  for (int b = 0; b < count; ++b) {
    for (int k = 0; k < classes(); ++k) logits[size_t(b) * classes() + k] += bias[k];
  }
}

}  // namespace bitfleet
