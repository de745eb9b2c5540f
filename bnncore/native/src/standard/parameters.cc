// Construction of the preset `standard`, and its parameters: where they start, how a step changes them.
#include <algorithm>
#include <cmath>

#include "bnncore/standard_engine.h"

namespace bitfleet {

StandardEngine::StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                               int num_threads)
    : StandardEngine(blocks, optimizer, batch_size, num_threads,
                     lay_out_standard_engine(blocks, optimizer, batch_size, num_threads)) {}

StandardEngine::StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                               int num_threads, StandardLayout layout)
    : LayerwiseEngine(std::move(blocks), optimizer, batch_size, num_threads, layout.common),
      layout_(std::move(layout)) {}

void StandardEngine::initialise(uint64_t seed) {
  reset(seed);
  for (size_t block = 0; block < block_count(); ++block) {
    const RandomStream random = random_stream(seed, 0, static_cast<uint32_t>(block), Purpose::kInitialise);
    float* values = weights(block);
    for (size_t i = 0; i < blocks_[block].num_weights(); ++i)
      values[i] = initial_weight(random, static_cast<uint32_t>(i), blocks_[block].fan_in());
    std::fill_n(beta(block), blocks_[block].out_channels, 0.0f);
  }
}

void StandardEngine::reset(uint64_t seed) {
  restore({seed, 0, 0, 0, 1.0, 1.0});
  for (size_t block = 0; block < block_count(); ++block) {
    const StandardBlockLayout& layout = layout_.blocks[block];
    const size_t count = blocks_[block].num_weights(), channels = static_cast<size_t>(blocks_[block].out_channels);
    std::fill_n(at<float>(layout.first_moment), count, 0.0f);
    if (optimizer_.kind == OptimizerKind::kAdam) std::fill_n(at<float>(layout.second_moment), count, 0.0f);
    std::fill_n(at<float>(layout.beta_first), channels, 0.0f);
    std::fill_n(at<float>(layout.beta_second), channels, 0.0f);
    std::fill_n(running_mean(block), channels, 0.0f);
    std::fill_n(running_mean_abs_dev(block), channels, 1.0f);
  }
}

void StandardEngine::write_weights(size_t block, const float* values) {
  std::copy_n(values, blocks_[block].num_weights(), weights(block));
}

void StandardEngine::read_weight_gradient(size_t block, float* out) const {
  std::copy_n(at<float>(layout_.blocks[block].weight_grad), blocks_[block].num_weights(), out);
}

void StandardEngine::update_block(size_t block, float step_scale) {
  const StandardBlockLayout& layout = layout_.blocks[block];
  const float step_size = optimizer_.step_size * step_scale;
  over_units(static_cast<int>(blocks_[block].num_weights()), kChannelUnit, [&](Range part, int) {
    const size_t from = static_cast<size_t>(part.begin), count = static_cast<size_t>(part.end - part.begin);
    float *values = weights(block) + from, *first = at<float>(layout.first_moment) + from;
    const float* grad = at<float>(layout.weight_grad) + from;
    if (optimizer_.kind == OptimizerKind::kAdam) {
      kernels_.adam(values, first, at<float>(layout.second_moment) + from, grad, count, adam_step(step_size));
    } else {
      // A real gradient falls with the root of the layer's number of weights: SGD takes that back (docs/optimizers.md).
      const float unit = std::sqrt(static_cast<float>(blocks_[block].num_weights()));
      kernels_.sgd(values, first, grad, count, unit, {optimizer_.momentum, step_size});
    }
  });
  adam_real(beta(block), at<float>(layout.beta_first), at<float>(layout.beta_second), at<float>(layout.beta_grad),
            blocks_[block].out_channels, adam_step(optimizer_.beta_step_size * step_scale));
}

}  // namespace bitfleet
