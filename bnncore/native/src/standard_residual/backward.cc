// Backward of the preset `standard` on a residual network: from the head through the units to the stem.
#include <algorithm>
#include <cmath>

#include "../standard/layers_inl.h"
#include "bnncore/standard_residual_engine.h"
#include "stem_pool.h"

namespace bitfleet {

void StandardResidualEngine::backward_block(size_t block) {
  if (is_head(block)) {
    backward_head();
  } else if (block > 0) {
    backward_unit(block);
  } else {
    backward_stem();
  }
}

void StandardResidualEngine::backward_head() {
  const BlockSpec& dense = blocks_.back();
  const int positions = network_.head_positions(), channels = dense.in_channels;
  const float *features = at<float>(layout_.features), *grad_logits = at<float>(layout_.grad_logits);
  find_weight_gradient(dense, layout_.dense, grad_logits, numbers_as_inputs(features, channels));
  float* grad_bias = at<float>(layout_.bias.gradient);
  for (int k = 0; k < classes(); ++k) {
    double sum = 0.0;
    for (int b = 0; b < batch_size_; ++b) sum += static_cast<double>(grad_logits[size_t(b) * classes() + k]);
    grad_bias[k] = static_cast<float>(sum);
  }
  float* grad_features = at<float>(layout_.grad_features);
  find_row_gradient(dense, grad_logits, numbers_as_weights(layout_.dense, dense), grad_features);
  const float* stream = at<float>(layout_.work);
  float* grad = at<float>(layout_.grad);
  over_rows(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      const float* source = grad_features + size_t(b) * channels;
      for (int p = 0; p < positions; ++p) {
        const size_t from = (size_t(b) * positions + p) * channels;
        for (int c = 0; c < channels; ++c) {
          const bool passes = !network_.relu || stream[from + c] > 0.0f;
          grad[from + c] = passes ? source[c] / static_cast<float>(positions) : 0.0f;
        }
      }
    }
  });
}

StandardResidualEngine::UnitWork StandardResidualEngine::unit_work(size_t block) const {
  const BlockSpec& spec = blocks_[block];
  const size_t batch = static_cast<size_t>(batch_size_);
  float* grad_y = at<float>(layout_.work);
  float* stream = grad_y + batch * static_cast<size_t>(spec.conv_positions()) * static_cast<size_t>(spec.out_channels);
  return {grad_y, stream, stream + batch * static_cast<size_t>(spec.in_features())};
}

void StandardResidualEngine::backward_unit(size_t block) {
  const BlockSpec& spec = blocks_[block];
  const StandardUnitLayout& u = unit_layout(block);
  const UnitWork work = unit_work(block);
  float* grad = at<float>(layout_.grad);
  const int rows = batch_size_ * spec.conv_positions();
  norm_gradient(u.norm, spec.out_channels, rows, /*masked=*/false, grad, work.grad_y);
  restore_stream(block, work.stream);
  find_weight_gradient(spec, u.weights, work.grad_y, signs_as_inputs(work.stream, spec.in_channels));
  if (unit(block).has_shortcut) {
    norm_gradient(u.shortcut_norm, spec.out_channels, rows, /*masked=*/false, grad, work.shortcut_grad);
    backward_shortcut(block, work.shortcut_grad);
  }
  const bool approx = unit(block).approx;
  const size_t features = static_cast<size_t>(spec.in_features());
  find_map_gradient(
      spec, work.grad_y, signs_as_weights(u.weights, spec),
      [&](int, int member) { return at<float>(layout_.maps[static_cast<size_t>(member)]); },
      [&](Range samples, const float* maps) {
        const float* s = work.stream + size_t(samples.begin) * features;
        float* target = grad + size_t(samples.begin) * features;
        const size_t count = size_t(samples.end - samples.begin) * features;
        if (approx) {
          for (size_t i = 0; i < count; ++i) target[i] += std::max(2.0f - 2.0f * std::fabs(s[i]), 0.0f) * maps[i];
        } else {
          for (size_t i = 0; i < count; ++i) target[i] += std::fabs(s[i]) <= 1.0f ? maps[i] : 0.0f;
        }
      });
}

// What a unit read: the first stream of its stage and what the units before it added, in the order of the forward pass.
void StandardResidualEngine::restore_stream(size_t block, float* stream) {
  size_t first = block - 1;
  while (first > 0 && !unit(first).has_shortcut) --first;
  const float* start = at<float>(first == 0 ? layout_.stem_out : unit_layout(first).shortcut_norm.x);
  const size_t features = static_cast<size_t>(blocks_[block].in_features());
  over_rows(batch_size_, [&](Range samples, int) {
    const size_t from = size_t(samples.begin) * features, to = size_t(samples.end) * features;
    std::copy(start + from, start + to, stream + from);
    for (size_t below = std::max<size_t>(first, 1); below < block; ++below) {
      const float* x = at<float>(unit_layout(below).norm.x);
      for (size_t i = from; i < to; ++i) stream[i] += x[i];
    }
  });
}

void StandardResidualEngine::backward_shortcut(size_t block, const float* grad_y) {
  const StandardUnitLayout& u = unit_layout(block);
  const ShortcutSpec& shortcut = unit(block).shortcut;
  const BlockSpec &spec = blocks_[block], &conv = shortcut.conv;
  find_weight_gradient(conv, u.shortcut, grad_y, numbers_as_inputs(at<float>(u.pooled), conv.in_channels));
  float* grad = at<float>(layout_.grad);
  const size_t channels = static_cast<size_t>(conv.in_channels), features = static_cast<size_t>(spec.in_features());
  const float elements = static_cast<float>(shortcut.pool_height * shortcut.pool_width);
  find_map_gradient(
      conv, grad_y, numbers_as_weights(u.shortcut, conv),
      [&](int, int member) { return at<float>(layout_.maps[static_cast<size_t>(member)]); },
      [&](Range samples, const float* maps) {
        for (int b = samples.begin; b < samples.end; ++b) {
          float* map = grad + size_t(b) * features;
          std::fill_n(map, features, 0.0f);
          for (int p = 0; p < conv.in_positions(); ++p, maps += channels) {
            const int row = p / conv.in_width * shortcut.pool_height;
            const int column = p % conv.in_width * shortcut.pool_width;
            for (int i = 0; i < shortcut.pool_height; ++i) {
              for (int j = 0; j < shortcut.pool_width; ++j) {
                float* target = map + static_cast<size_t>((row + i) * spec.in_width + column + j) * channels;
                for (size_t c = 0; c < channels; ++c) target[c] = maps[c] / elements;
              }
            }
          }
        }
      });
}

void StandardResidualEngine::backward_stem() {
  const StemSpec& stem = network_.stem;
  const BlockSpec& conv = stem.conv;
  const int channels = conv.out_channels, rows = batch_size_ * conv.conv_positions();
  float* grad = at<float>(layout_.grad);
  if (!stem.second_norm.empty()) {
    norm_gradient(layout_.second_norm, channels, batch_size_ * stem.out_positions(), /*masked=*/false, grad, grad);
  }
  if (stem.pools) {
    float* whole = at<float>(layout_.work);
    unpool_stem(grad, whole);
    grad = whole;
  }
  if (stem.relu) {
    const float* x = at<float>(layout_.stem_norm.x);
    over_rows(rows, [&](Range part, int) {
      for (size_t i = size_t(part.begin) * channels; i < size_t(part.end) * channels; ++i) {
        grad[i] = x[i] > 0.0f ? grad[i] : 0.0f;
      }
    });
  }
  norm_gradient(layout_.stem_norm, channels, rows, /*masked=*/false, grad, grad);
  find_weight_gradient(conv, layout_.stem, grad, bytes_as_inputs(conv.in_channels));
}

// Adds each gradient to the first of its window's largest elements, window by window.
void StandardResidualEngine::unpool_stem(const float* grad, float* out) {
  const StemSpec& stem = network_.stem;
  const size_t channels = static_cast<size_t>(stem.conv.out_channels);
  const size_t values = static_cast<size_t>(stem.conv.conv_positions()) * channels;
  const size_t outputs = static_cast<size_t>(stem.out_positions()) * channels;
  const float* inputs = at<float>(stem.relu ? layout_.pool_input : layout_.stem_norm.x);
  over_rows(batch_size_, [&](Range samples, int) {
    for (int b = samples.begin; b < samples.end; ++b) {
      const float* x = inputs + size_t(b) * values;
      float* map = out + size_t(b) * values;
      std::fill_n(map, values, 0.0f);
      for_each_window(stem, [&](const StemWindow& w) {
        const float* source = grad + size_t(b) * outputs + static_cast<size_t>(w.number) * channels;
        for (size_t c = 0; c < channels; ++c) {
          size_t best = static_cast<size_t>(w.pixel(0)) * channels + c;
          for (int i = 1; i < w.size(); ++i) {
            const size_t other = static_cast<size_t>(w.pixel(i)) * channels + c;
            best = x[other] > x[best] ? other : best;
          }
          map[best] += source[c];
        }
      });
    }
  });
}

}  // namespace bitfleet
