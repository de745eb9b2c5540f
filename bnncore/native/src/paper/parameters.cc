// Construction of the preset `paper`, and its parameters: where they start, how a step changes them.
#include <algorithm>
#include <cmath>

#include "operands_inl.h"

namespace bitfleet {

PaperEngine::PaperEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                         int num_threads)
    : PaperEngine(blocks, optimizer, batch_size, num_threads,
                  lay_out_paper_engine(blocks, optimizer, batch_size, num_threads)) {}

PaperEngine::PaperEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                         int num_threads, PaperLayout layout)
    : LayerwiseEngine(std::move(blocks), optimizer, batch_size, num_threads, layout.common),
      layout_(std::move(layout)) {}

void PaperEngine::initialise(uint64_t seed) {
  reset(seed);
  for (size_t block = 0; block < block_count(); ++block) {
    const RandomStream random = random_stream(seed, 0, static_cast<uint32_t>(block), Purpose::kInitialise);
    uint16_t* values = weights(block);
    for (size_t i = 0; i < blocks_[block].num_weights(); ++i) {
      values[i] = to_half(initial_weight(random, static_cast<uint32_t>(i), blocks_[block].fan_in()));
    }
    std::fill_n(beta(block), blocks_[block].out_channels, 0.0f);
  }
}

void PaperEngine::reset(uint64_t seed) {
  restore({seed, 0, 0, 0, 1.0, 1.0});
  for (size_t block = 0; block < block_count(); ++block) {
    const PaperBlockLayout& layout = layout_.blocks[block];
    const size_t count = blocks_[block].num_weights(), channels = static_cast<size_t>(blocks_[block].out_channels);
    std::fill_n(at<uint16_t>(layout.first_moment), count, uint16_t{0});
    if (optimizer_.kind == OptimizerKind::kAdam) std::fill_n(at<uint16_t>(layout.second_moment), count, uint16_t{0});
    std::fill_n(at<float>(layout.beta_first), channels, 0.0f);
    std::fill_n(at<float>(layout.beta_second), channels, 0.0f);
    std::fill_n(running_mean(block), channels, 0.0f);
    std::fill_n(running_mean_abs_dev(block), channels, 1.0f);
  }
}

void PaperEngine::write_weights(size_t block, const float* values) {
  constexpr uint16_t kMinusZero = 0x8000;
  uint16_t* halves = weights(block);
  for (size_t i = 0; i < blocks_[block].num_weights(); ++i) {
    const uint16_t half = to_half_saturating(values[i]);
    halves[i] = half == kMinusZero && values[i] < 0.0f ? kMinusZero + 1 : half;
  }
}

void PaperEngine::read_weight_gradient(size_t block, float* out) const {
  const BlockSpec& spec = blocks_[block];
  const size_t row_words = static_cast<size_t>(words_for(spec.fan_in()));
  for (int row = 0; row < spec.out_channels; ++row) {
    kernels_.expand_bits(at<uint64_t>(layout_.blocks[block].weight_grad) + size_t(row) * row_words, 0, spec.fan_in(),
                         out + size_t(row) * spec.fan_in());
  }
}

void PaperEngine::update_block(size_t block, float step_scale) {
  const BlockSpec& spec = blocks_[block];
  const PaperBlockLayout& layout = layout_.blocks[block];
  const size_t row_words = static_cast<size_t>(words_for(spec.fan_in()));
  const RandomStream random = stream(block, Purpose::kUpdate);
  const float step_size = optimizer_.step_size * step_scale;
  over_rows(spec.out_channels, [&](Range outputs, int) {
    for (int row = outputs.begin; row < outputs.end; ++row) {
      const size_t from = size_t(row) * spec.fan_in();
      const uint64_t* negative = at<uint64_t>(layout.weight_grad) + size_t(row) * row_words;
      uint16_t *values = weights(block) + from, *first = at<uint16_t>(layout.first_moment) + from;
      const uint32_t index = static_cast<uint32_t>(from);
      if (optimizer_.kind == OptimizerKind::kAdam) {
        kernels_.half_adam(values, first, at<uint16_t>(layout.second_moment) + from, negative, spec.fan_in(), 1.0f,
                           adam_step(step_size), random, index);
      } else {
        // N of the published sign(dW) / sqrt(N) is the layer's number of weights (docs/optimizers.md).
        const float unit = 1.0f / std::sqrt(static_cast<float>(spec.num_weights()));
        kernels_.half_sgd(values, first, negative, spec.fan_in(), unit, {optimizer_.momentum, step_size}, random,
                          index);
      }
    }
  });
  adam_real(beta(block), at<float>(layout.beta_first), at<float>(layout.beta_second), at<float>(layout.beta_grad),
            spec.out_channels, adam_step(optimizer_.beta_step_size * step_scale));
}

}  // namespace bitfleet
