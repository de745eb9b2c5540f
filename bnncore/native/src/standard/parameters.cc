// Construction of the preset `standard`, and its parameters: where they start, how a step changes them.
#include <algorithm>

#include "bnncore/standard_engine.h"

namespace bitfleet {

StandardEngine::StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                               int num_threads)
    : StandardEngine(blocks, optimizer, batch_size, num_threads,
                     lay_out_standard_engine(blocks, optimizer, batch_size, num_threads)) {}

StandardEngine::StandardEngine(std::vector<BlockSpec> blocks, const OptimizerParams& optimizer, int batch_size,
                               int num_threads, StandardLayout layout)
    : StandardLayers(std::move(blocks), optimizer, batch_size, num_threads, layout.common, layout.norms),
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
    forget(layout_.blocks[block].weights, blocks_[block].num_weights());
    forget(layout_.blocks[block].norm, blocks_[block].out_channels);
  }
}

void StandardEngine::write_weights(size_t block, const float* values) {
  std::copy_n(values, blocks_[block].num_weights(), weights(block));
}

void StandardEngine::read_weight_gradient(size_t block, float* out) const {
  std::copy_n(at<float>(layout_.blocks[block].weights.gradient), blocks_[block].num_weights(), out);
}

void StandardEngine::update_block(size_t block, float step_scale) {
  update_latent(layout_.blocks[block].weights, blocks_[block].num_weights(), step_scale);
  update_norm(layout_.blocks[block].norm, blocks_[block].out_channels, step_scale);
}

}  // namespace bitfleet
