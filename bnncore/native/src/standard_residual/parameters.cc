// Construction of the preset `standard` for residual networks, and its parameters.
#include <algorithm>

#include "../residual/planes.h"
#include "bnncore/standard_residual_engine.h"

namespace bitfleet {

StandardResidualEngine::StandardResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size,
                                               int num_threads)
    : StandardResidualEngine(network, optimizer, batch_size, num_threads,
                             lay_out_standard_residual(network, optimizer, batch_size, num_threads)) {}

StandardResidualEngine::StandardResidualEngine(ResidualSpec network, const OptimizerParams& optimizer, int batch_size,
                                               int num_threads, StandardResidualLayout layout)
    : StandardLayers(standard_residual_blocks(network), optimizer, batch_size, num_threads, layout.common,
                     layout.norms),
      network_(std::move(network)),
      layout_(std::move(layout)) {}

// The numbers of layers are those of ResidualEngine: the same seed starts the same network in every preset.
void StandardResidualEngine::initialise(uint64_t seed) {
  reset(seed);
  const auto start = [&](const WeightLayout& weights, uint32_t layer, size_t count, int fan_in) {
    const RandomStream random = random_stream(seed, 0, layer, Purpose::kInitialise);
    float* values = at<float>(weights.values);
    for (size_t i = 0; i < count; ++i) values[i] = initial_weight(random, static_cast<uint32_t>(i), fan_in);
  };
  const auto clear = [&](size_t offset, int count) { std::fill_n(at<float>(offset), count, 0.0f); };
  const StemSpec& stem = network_.stem;
  start(layout_.stem, 0, stem.conv.num_weights(), stem.conv.fan_in());
  clear(layout_.stem_norm.beta, stem.conv.out_channels);
  if (!stem.second_norm.empty()) clear(layout_.second_norm.beta, stem.conv.out_channels);
  for (size_t block = 1; !is_head(block); ++block) {
    const StandardUnitLayout& u = unit_layout(block);
    const BlockSpec& spec = blocks_[block];
    start(u.weights, static_cast<uint32_t>(block), spec.num_weights(), spec.fan_in());
    clear(u.norm.beta, spec.out_channels);
    if (!unit(block).has_shortcut) continue;
    const BlockSpec& conv = unit(block).shortcut.conv;
    start(u.shortcut, static_cast<uint32_t>(block) | kSide, conv.num_weights(), conv.fan_in());
    clear(u.shortcut_norm.beta, conv.out_channels);
  }
  const BlockSpec& dense = blocks_.back();
  start(layout_.dense, static_cast<uint32_t>(block_count() - 1), dense.num_weights(), dense.fan_in());
  clear(layout_.bias.values, network_.classes);
}

void StandardResidualEngine::reset(uint64_t seed) {
  restore({seed, 0, 0, 0, 1.0, 1.0});
  const StemSpec& stem = network_.stem;
  forget(layout_.stem, stem.conv.num_weights());
  forget(layout_.stem_norm, stem.conv.out_channels);
  if (!stem.second_norm.empty()) forget(layout_.second_norm, stem.conv.out_channels);
  for (size_t block = 1; !is_head(block); ++block) {
    const StandardUnitLayout& u = unit_layout(block);
    forget(u.weights, blocks_[block].num_weights());
    forget(u.norm, blocks_[block].out_channels);
    if (!unit(block).has_shortcut) continue;
    forget(u.shortcut, unit(block).shortcut.conv.num_weights());
    forget(u.shortcut_norm, blocks_[block].out_channels);
  }
  forget(layout_.dense, blocks_.back().num_weights());
  forget(layout_.bias, static_cast<size_t>(network_.classes));
}

void StandardResidualEngine::update_block(size_t block, float step_scale) {
  const BlockSpec& spec = blocks_[block];
  if (block == 0) {
    update_real(layout_.stem, spec.num_weights(), step_scale);
    update_norm(layout_.stem_norm, spec.out_channels, step_scale);
    if (!network_.stem.second_norm.empty()) update_norm(layout_.second_norm, spec.out_channels, step_scale);
  } else if (is_head(block)) {
    update_real(layout_.dense, spec.num_weights(), step_scale);
    update_real(layout_.bias, static_cast<size_t>(spec.out_channels), step_scale);
  } else {
    const StandardUnitLayout& u = unit_layout(block);
    update_latent(u.weights, spec.num_weights(), step_scale);
    update_norm(u.norm, spec.out_channels, step_scale);
    if (!unit(block).has_shortcut) return;
    update_real(u.shortcut, unit(block).shortcut.conv.num_weights(), step_scale);
    update_norm(u.shortcut_norm, spec.out_channels, step_scale);
  }
}

}  // namespace bitfleet
