// The head: the mean of the stream over its map, a real-valued dense layer, softmax cross-entropy; and back.
//
// Products are float32, each sum in the order of its index, a product and an addition at a time: samples, or channels,
// lie side by side in a vector, so that the order is the same at any width.
#include <algorithm>
#include <cmath>

#include "bnncore/residual_engine.h"
#include "bnncore/rounding.h"

namespace bitfleet {

void ResidualEngine::head_logits(int count) {
  const int channels = network_.features(), positions = network_.head_positions(), classes = network_.classes;
  const int stage = network_.units.back().stage;
  const size_t batch = static_cast<size_t>(batch_size_);
  const float unit_worth = static_cast<float>(1.0 / (kStreamUnits * positions));
  float* features = at<float>(more_.features);
  for (int c = 0; c < channels; ++c) {
    const int16_t* s = stream_row(stage, c);
    for (int b = 0; b < count; ++b) {
      int64_t sum = 0;
      for (int p = 0; p < positions; ++p, ++s) sum += network_.relu && *s < 0 ? 0 : *s;
      features[static_cast<size_t>(c) * batch + static_cast<size_t>(b)] = static_cast<float>(sum) * unit_worth;
    }
  }
  constexpr int kSamples = 16;
  float* logits = at<float>(layout_.logits);
  pool_.run([&](int member) {
    const Range range = partition(classes, num_threads(), member);
    for (int k = range.begin; k < range.end; ++k) {
      const float* weights = at<float>(more_.dense.value) + static_cast<size_t>(k) * channels;
      for (int first = 0; first < count; first += kSamples) {
        const int some = std::min(kSamples, count - first);
        float sums[kSamples] = {};
        for (int c = 0; c < channels; ++c) {
          const float* row = features + static_cast<size_t>(c) * batch + static_cast<size_t>(first);
          for (int b = 0; b < some; ++b) sums[b] += row[b] * weights[c];
        }
        for (int b = 0; b < some; ++b) {
          logits[static_cast<size_t>(first + b) * classes + k] = sums[b] + at<float>(more_.bias.value)[k];
        }
      }
    }
  });
}

StepResult ResidualEngine::head_softmax(int count, int32_t* predictions, bool with_gradient) {
  const float* logits = at<float>(layout_.logits);
  const int classes = network_.classes;
  if (!with_gradient) return softmax_batch(logits, labels(), count, classes, predictions, nullptr);
  float* gradient = at<float>(more_.grad_logits);
  return softmax_batch(logits, labels(), count, classes, predictions, [&](int b, int c, double value) {
    gradient[static_cast<size_t>(b) * classes + c] = static_cast<float>(value / count);
  });
}

void ResidualEngine::backward_head(float step_scale) {
  const int channels = network_.features(), classes = network_.classes;
  const size_t batch = static_cast<size_t>(batch_size_);
  const float* grad_logits = at<float>(more_.grad_logits);
  const float* features = at<float>(more_.features);
  float* grad_features = at<float>(more_.grad_features);
  pool_.run([&](int member) {
    const Range samples = partition(batch_size_, num_threads(), member);
    for (int b = samples.begin; b < samples.end; ++b) {
      float* __restrict target = grad_features + static_cast<size_t>(b) * channels;
      std::fill_n(target, channels, 0.0f);
      for (int k = 0; k < classes; ++k) {
        const float grad = grad_logits[static_cast<size_t>(b) * classes + k];
        const float* __restrict weights = at<float>(more_.dense.value) + static_cast<size_t>(k) * channels;
        for (int c = 0; c < channels; ++c) target[c] += grad * weights[c];
      }
    }
  });
  const auto run = [&](bool measure) {
    pool_.run([&](int member) {
      results_[static_cast<size_t>(member)] = head_gradient(measure, partition(batch_size_, num_threads(), member));
    });
    return sum_of_members();
  };
  BlockScales& scales = head_scales();
  if (!(scales.max_grad_x > 0.0f)) scales.max_grad_x = run(/*measure=*/true).max_abs / optimizer_.headroom;
  scales.scale_x = scale_of(scales.max_grad_x);
  const TileResult rounded = run(/*measure=*/false);
  saturated_ += rounded.saturated;
  gradient_scale_ = scales.scale_x;
  scales.max_grad_x = std::max(rounded.max_abs * scales.scale_x, scales.max_grad_x * optimizer_.scale_decay);

  const AdamStep adam = adam_step(optimizer_.beta_step_size * step_scale);
  pool_.run([&](int member) {
    const Range range = partition(classes, num_threads(), member);
    for (int k = range.begin; k < range.end; ++k) {
      float grad_bias = 0.0f;
      for (size_t b = 0; b < batch; ++b) grad_bias += grad_logits[b * static_cast<size_t>(classes) + k];
      for (int c = 0; c < channels; ++c) {
        const float* row = features + static_cast<size_t>(c) * batch;
        float grad = 0.0f;
        for (size_t b = 0; b < batch; ++b) grad += grad_logits[b * static_cast<size_t>(classes) + k] * row[b];
        train_real(more_.dense, static_cast<size_t>(k) * channels + static_cast<size_t>(c), &grad, 1, adam);
      }
      train_real(more_.bias, static_cast<size_t>(k), &grad_bias, 1, adam);
    }
  });
}

// The gradient of the last stream in 8 bits, sample by sample; or only its largest magnitude.
Engine::TileResult ResidualEngine::head_gradient(bool measure, Range samples) const {
  const int channels = network_.features(), positions = network_.head_positions();
  const int stage = network_.units.back().stage;
  const size_t stride = more_.streams[static_cast<size_t>(stage)].stride;
  const float share = static_cast<float>(1.0 / positions);
  const float unit_worth = measure ? 1.0f : at<BlockScales>(layout_.scales)[2 * block_count()].scale_x;
  const RandomStream random = stream(block_count(), Purpose::kGradX);
  TileResult result{};
  for (int b = samples.begin; b < samples.end; ++b) {
    const float* grads = at<float>(more_.grad_features) + static_cast<size_t>(b) * channels;
    int8_t* target = at<int8_t>(layout_.gradient) + static_cast<size_t>(b) * layout_.gradient_stride;
    for (int p = 0; p < positions; ++p) {
      const size_t position = static_cast<size_t>(b) * positions + static_cast<size_t>(p);
      const int16_t* s = stream_row(stage, 0) + position;
      for (int c = 0; c < channels; ++c) {
        const bool passes = !network_.relu || s[static_cast<size_t>(c) * stride] > 0;
        const float value = passes ? grads[c] * share / unit_worth : 0.0f;
        result.max_abs = std::max(result.max_abs, std::fabs(value));
        if (measure) continue;
        result.saturated += std::fabs(value) > kInt8Limit;
        const uint32_t half = random_half(random, static_cast<uint32_t>(position * channels + static_cast<size_t>(c)));
        target[static_cast<size_t>(p) * channels + static_cast<size_t>(c)] =
            static_cast<int8_t>(round_stochastic(value, half));
      }
    }
  }
  return result;
}

}  // namespace bitfleet
