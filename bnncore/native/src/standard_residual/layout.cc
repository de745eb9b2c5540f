// The memory plan of the preset `standard` for residual networks.
#include <algorithm>

#include "../layerwise/patches.h"
#include "bnncore/standard_residual_engine.h"

namespace bitfleet {

namespace {

size_t add_floats(MemoryPlan& plan, const std::string& name, const char* role, std::vector<int64_t> shape) {
  return plan.add(name, role, "float32", std::move(shape), kPersistent);
}

WeightLayout add_weights(MemoryPlan& plan, const std::string& name, const std::vector<int64_t>& shape,
                         bool two_moments) {
  WeightLayout weights{};
  weights.values = add_floats(plan, name, "weights", shape);
  weights.first_moment = add_floats(plan, name + "_mean", "momenta", shape);
  if (two_moments) weights.second_moment = add_floats(plan, name + "_square", "momenta", shape);
  weights.gradient = add_floats(plan, name + "_gradient", "gradients", shape);
  return weights;
}

WeightLayout add_conv(MemoryPlan& plan, const BlockSpec& conv, bool two_moments) {
  return add_weights(plan, conv.linear + ".weight", {conv.out_channels, conv.fan_in()}, two_moments);
}

int64_t products(const BlockSpec& conv) { return int64_t{conv.conv_positions()} * conv.out_channels; }

// Numbers that find_map_gradient makes at once.
int64_t maps_at_once(const BlockSpec& conv, int batch_size) {
  return int64_t{std::min(samples_at_once(conv, SIZE_MAX), batch_size)} * conv.in_features();
}

}  // namespace

std::vector<BlockSpec> standard_residual_blocks(const ResidualSpec& network) {
  std::vector<BlockSpec> blocks{network.stem.conv};
  for (const UnitSpec& unit : network.units) blocks.push_back(unit.conv);
  BlockSpec dense{};
  dense.linear = network.dense;
  dense.in_height = dense.in_width = dense.kernel_height = dense.kernel_width = dense.stride = 1;
  dense.conv_height = dense.conv_width = dense.pool_height = dense.pool_width = 1;
  dense.in_channels = network.features();
  dense.out_channels = network.classes;
  blocks.push_back(dense);
  return blocks;
}

StandardResidualLayout lay_out_standard_residual(const ResidualSpec& network, const OptimizerParams& optimizer,
                                                 int batch_size, int num_threads) {
  check_optimizer(optimizer);
  StandardResidualLayout layout{};
  MemoryPlan& plan = layout.common.plan;
  const StemSpec& stem = network.stem;
  const bool two_moments = optimizer.kind == OptimizerKind::kAdam;
  const int channels = stem.conv.out_channels;
  const std::vector<int64_t> stem_out = {batch_size, stem.out_positions(), channels};
  layout.stem = add_conv(plan, stem.conv, /*two_moments=*/true);
  layout.stem_norm = add_l2_norm(plan, stem.conv.norm, batch_size, stem.conv.conv_positions(), channels);
  if (stem.relu && stem.pools) {
    layout.pool_input =
        add_floats(plan, "stem.pool_input", "activations", {batch_size, stem.conv.conv_positions(), channels});
  }
  if (!stem.second_norm.empty()) {
    layout.second_norm = add_l2_norm(plan, stem.second_norm, batch_size, stem.out_positions(), channels);
    layout.stem_out = layout.second_norm.x;
  } else if (stem.relu || stem.pools) {
    layout.stem_out = add_floats(plan, "stem.output", "activations", stem_out);
  } else {
    layout.stem_out = layout.stem_norm.x;
  }

  int64_t stream = int64_t{stem.out_positions()} * channels, maps = 0;
  int64_t work = std::max(stream, stem.pools ? products(stem.conv) : 0);
  int most_channels = channels;
  layout.units.emplace_back();
  for (const UnitSpec& unit : network.units) {
    const int out = unit.conv.out_channels;
    StandardUnitLayout u{};
    u.weights = add_conv(plan, unit.conv, two_moments);
    u.norm = add_l2_norm(plan, unit.conv.norm, batch_size, unit.conv.conv_positions(), out);
    int64_t needed = products(unit.conv) + unit.conv.in_features();
    maps = std::max(maps, maps_at_once(unit.conv, batch_size));
    if (unit.has_shortcut) {
      const BlockSpec& conv = unit.shortcut.conv;
      u.shortcut = add_conv(plan, conv, /*two_moments=*/true);
      u.shortcut_norm = add_l2_norm(plan, conv.norm, batch_size, conv.conv_positions(), out);
      u.pooled =
          add_floats(plan, conv.linear + ".input", "activations", {batch_size, conv.in_positions(), conv.in_channels});
      needed += products(conv);
      maps = std::max(maps, maps_at_once(conv, batch_size));
    }
    layout.units.push_back(u);
    stream = std::max({stream, int64_t{unit.conv.in_features()}, products(unit.conv)});
    work = std::max({work, stream, needed});
    most_channels = std::max(most_channels, out);
  }
  const int features = network.features(), classes = network.classes;
  layout.dense = add_weights(plan, network.dense + ".weight", {classes, features}, /*two_moments=*/true);
  layout.bias = add_weights(plan, network.dense + ".bias", {classes}, /*two_moments=*/true);

  CommonLayout& common = layout.common;
  common.input = plan.add("input", "input", "uint8", {batch_size, stem.conv.in_features()}, kPersistent);
  common.labels = plan.add("labels", "input", "int32", {batch_size}, kPersistent);
  layout.features = add_floats(plan, "features", "activations", {batch_size, features});
  layout.logits = add_floats(plan, "logits", "activations", {batch_size, classes});
  layout.grad_logits = add_floats(plan, "grad_logits", "gradients", {batch_size, classes});
  layout.grad_features = add_floats(plan, "grad_features", "gradients", {batch_size, features});
  layout.grad = add_floats(plan, "grad_stream", "gradients", {batch_size, stream});
  layout.work = add_floats(plan, "stream_and_grad_y", "gradients", {batch_size, work});
  layout.norms = add_norm_scratch(plan, most_channels);
  for (int member = 0; member < num_threads; ++member) {
    common.products.push_back(add_products(plan, member));
    layout.maps.push_back(
        plan.add("thread" + std::to_string(member) + ".maps", "scratch", "float32", {maps}, kInputs, 0, member));
  }
  plan.lay_out();

  for (WeightLayout* weights : {&layout.stem, &layout.dense, &layout.bias}) resolve(plan, *weights);
  for (L2NormLayout* norm : {&layout.stem_norm, &layout.second_norm}) resolve(plan, *norm);
  for (StandardUnitLayout& u : layout.units) {
    for (WeightLayout* weights : {&u.weights, &u.shortcut}) resolve(plan, *weights);
    for (L2NormLayout* norm : {&u.norm, &u.shortcut_norm}) resolve(plan, *norm);
    u.pooled = plan.offset(u.pooled);
  }
  resolve_products(plan, common.products);
  resolve(plan, layout.norms);
  for (size_t* field : {&common.input, &common.labels, &layout.pool_input, &layout.stem_out, &layout.features,
                        &layout.logits, &layout.grad_logits, &layout.grad_features, &layout.grad, &layout.work}) {
    *field = plan.offset(*field);
  }
  for (size_t& map : layout.maps) map = plan.offset(map);
  common.logits = layout.logits;
  return layout;
}

}  // namespace bitfleet
